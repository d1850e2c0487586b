"""Tells the trackers the targets of autoscaling that the running configuration names."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.settings import ScalingSettings

log = structlog.get_logger(__name__)

Tell = Callable[[ScalingSettings], Awaitable[None]]
"""Tells all trackers. May raise `TrackerUnavailable`."""


class Aiming:
    """Says it again and again, since a tracker that has started anew knows only its first settings."""

    LOOK = 0.5
    """Seconds until a change of the targets is told."""
    AGAIN = 10.0
    """Seconds between two times without a change."""

    def __init__(self, settings: ScalingSettings, tell: Tell) -> None:
        """`settings` hold where the configuration names nothing else."""
        self._settings = settings
        self._tell = tell
        self._aim: ScalingSettings | None = None
        self._task: asyncio.Task[None] | None = None

    def at(self, changes: object) -> None:
        """Take `changes`, settings by their names, as targets from now on; from any thread. Impossible ones
        are logged and change nothing: Serve stops a replica whose `reconfigure` raises."""
        try:
            if not isinstance(changes, Mapping):
                raise ValueError("targets are settings of the group `scaling` by their names")
            self._aim = ScalingSettings.model_validate({**self._settings.model_dump(), **changes})
        except ValueError as error:
            log.error("targets refused", targets=changes, reason=str(error))

    def start(self) -> None:
        self._task = asyncio.create_task(self._tell_forever(), name="targets")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _tell_forever(self) -> None:
        told: ScalingSettings | None = None
        at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            aim = self._aim
            if aim is not None and (aim != told or now - at >= self.AGAIN):
                await self._tell_once(aim)
                told, at = aim, now
            await asyncio.sleep(self.LOOK)

    async def _tell_once(self, aim: ScalingSettings) -> None:
        try:
            await self._tell(aim)
        except TrackerUnavailable as error:
            log.info("targets not told yet", reason=str(error))
