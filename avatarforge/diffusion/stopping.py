"""What becomes of a replica's tasks when the replica is about to be stopped, and of slots that nobody uses.

Serve waits for a replica's streams for some time before it kills it, and tells the replica nothing; and it
keeps a slot that was reserved until whoever reserved it gives it back, also when that one is dead.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Protocol

import structlog

from avatarforge.domain.generations import GenerationFailed, GenerationProgress, GenerationUpdate
from avatarforge.domain.jobs import JobError

log = structlog.get_logger(__name__)

STOPPING = GenerationFailed(
    error=JobError(code="worker_stopping", message="The worker is about to be stopped."),
    retryable=True,
    is_held_against_job=False,
)


class Shell(Protocol):
    """The replica as Serve has it; `serve_shell.ServeShell` asks it."""

    @property
    def is_stopping(self) -> bool: ...

    @property
    def seconds_to_stop(self) -> float:
        """What Serve grants a replica from the word to stop on."""

    @property
    def reserved(self) -> Collection[str]:
        """Slots that are reserved and not used yet."""

    def release(self, reserved: str) -> None: ...


class Stopping:
    """Watches the shell, and has tasks given back in time."""

    LOOK = 1.0
    """Seconds between two looks at the shell."""
    MARGIN = 8.0
    """Seconds before the replica is killed at which what still runs is given back: a worker tells something
    every five."""
    ABANDONED = 30.0
    """Seconds after which a slot that was reserved and not used is free again. Trackers hold one for two."""

    def __init__(self, shell: Shell, clock: Callable[[], float]) -> None:
        self._shell = shell
        self._clock = clock
        self._stopping_since: float | None = None
        self._seen: dict[str, float] = {}
        """Reserved slots, and since when."""
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch for as long as the process lives."""
        self._watching = asyncio.create_task(self._watch_forever(), name="stopping")

    async def heeding(
        self, updates: AsyncGenerator[GenerationUpdate, None]
    ) -> AsyncGenerator[GenerationUpdate, None]:
        """The task's updates. When the replica is to be stopped, a task that has not begun is given back at
        once, and one that runs when it cannot be done in time: its job goes on elsewhere."""
        has_begun = False
        async with aclosing(updates):
            async for update in updates:
                has_begun = has_begun or not isinstance(update, GenerationProgress) or update.total_steps > 0
                if isinstance(update, GenerationProgress) and self._must_leave(has_begun=has_begun):
                    yield STOPPING
                    return
                yield update

    def look(self) -> None:
        """Note what the shell says, and free slots that were reserved too long ago."""
        now = self._clock()
        if self._stopping_since is None and self._shell.is_stopping:
            self._stopping_since = now
            log.info("replica is to be stopped", seconds=self._shell.seconds_to_stop)
        self._seen = {slot: self._seen.get(slot, now) for slot in self._shell.reserved}
        for slot, since in self._seen.items():
            if now - since >= self.ABANDONED:
                log.warning("abandoned slot is free again", slot=slot)
                self._shell.release(slot)

    def _must_leave(self, *, has_begun: bool) -> bool:
        if self._stopping_since is None:
            return False
        granted = self._shell.seconds_to_stop - self.MARGIN
        return not has_begun or self._clock() - self._stopping_since >= granted

    async def _watch_forever(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self.LOOK)
