"""Sends the trackers the autoscaling targets that the running configuration names."""

from collections.abc import Awaitable, Callable

import structlog

from avatarforge.background import PeriodicTask, monotonic
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.settings import ScalingSettings

log = structlog.get_logger(__name__)


class ScalingTargets:
    """Sends them again and again: a tracker that has restarted knows only its first settings."""

    POLL_INTERVAL_SECONDS = 0.5
    """Until a change of the targets is sent."""
    RESEND_INTERVAL_SECONDS = 10.0
    """Without a change."""

    def __init__(self, send: Callable[[ScalingSettings], Awaitable[None]]) -> None:
        """`send` sends to all trackers and may raise `TrackerUnavailable`."""
        self._send = send
        self._targets: ScalingSettings | None = None
        self._sent: ScalingSettings | None = None
        self._sent_at = 0.0
        self._task = PeriodicTask("scaling targets", self._send_if_due, self.POLL_INTERVAL_SECONDS)

    def update(self, targets: ScalingSettings) -> None:
        """Send these from now on; from any thread."""
        self._targets = targets

    def start(self) -> None:
        self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _send_if_due(self) -> None:
        now, targets = monotonic(), self._targets
        is_old = now - self._sent_at >= self.RESEND_INTERVAL_SECONDS
        if targets is not None and (is_old or targets != self._sent):
            try:
                await self._send(targets)
            except TrackerUnavailable as error:
                log.info("targets were not sent yet", reason=str(error))
            self._sent, self._sent_at = targets, now
