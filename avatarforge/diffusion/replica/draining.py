"""Drains a replica that Serve is about to stop, and frees slots that were reserved and never used.

Serve waits for a replica's streams for some time before it kills it, and does not tell the replica; and it
keeps a reserved slot until its owner gives it back, even if the owner is dead.
"""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any

import structlog
from ray._private.worker import global_worker

from avatarforge.background import PeriodicTask
from avatarforge.domain.generations import (
    WORKER_STOPPING,
    GenerationFailed,
    GenerationProgress,
    GenerationUpdate,
)
from avatarforge.domain.jobs import JobError

log = structlog.get_logger(__name__)

GIVEN_BACK = GenerationFailed(
    error=JobError(code=WORKER_STOPPING, message="The worker is about to be stopped."),
    retryable=True,
    counts_as_failure=False,
)


class DrainMonitor:
    """Polls the replica's state, and gives tasks back before the replica is killed."""

    CHECK_INTERVAL_SECONDS = 1.0
    MARGIN_SECONDS = 8.0
    """Running tasks are given back so long before the kill: a worker yields an update every five seconds."""
    SLOT_TIMEOUT_SECONDS = 30.0
    """After this a slot that was reserved and not used is released. Trackers hold one for two seconds."""

    def __init__(self, internals: "ServeInternals", clock: Callable[[], float]) -> None:
        self._internals = internals
        self._clock = clock
        self._stopping_since: float | None = None
        self._reserved_since: dict[str, float] = {}
        """By slot."""
        self._task: PeriodicTask | None = None

    def start(self) -> None:
        """Check for as long as the process lives."""
        self._task = PeriodicTask("drain monitor", self.check, self.CHECK_INTERVAL_SECONDS)
        self._task.start()

    async def guard(
        self, updates: AsyncGenerator[GenerationUpdate, None]
    ) -> AsyncGenerator[GenerationUpdate, None]:
        """Pass the task's updates on. If the replica is about to be stopped, give the task back: at once if
        it has not begun, else when time runs out. Its job goes on elsewhere."""
        has_begun = False
        async with aclosing(updates):
            async for update in updates:
                has_begun = has_begun or not isinstance(update, GenerationProgress) or update.total_steps > 0
                if isinstance(update, GenerationProgress) and self._should_give_back(has_begun=has_begun):
                    yield GIVEN_BACK
                    return
                yield update

    async def check(self) -> None:
        """Note whether the replica is stopping, and release slots that were reserved too long ago."""
        now = self._clock()
        if self._stopping_since is None and self._internals.is_stopping:
            self._stopping_since = now
            log.info("replica is to be stopped", seconds=self._internals.stop_timeout_seconds)
        self._reserved_since = {
            slot: self._reserved_since.get(slot, now) for slot in self._internals.reserved_slots
        }
        for slot, since in self._reserved_since.items():
            if now - since >= self.SLOT_TIMEOUT_SECONDS:
                log.warning("abandoned slot is released", slot=slot)
                self._internals.release(slot)

    def _should_give_back(self, *, has_begun: bool) -> bool:
        if self._stopping_since is None:
            return False
        seconds_left = self._internals.stop_timeout_seconds - self.MARGIN_SECONDS
        return not has_begun or self._clock() - self._stopping_since >= seconds_left


class ServeInternals:
    """Reads what Serve has no public API for: Ray's version is pinned, and a test checks these attributes.

    Raises `RuntimeError` outside of a replica.
    """

    def __init__(self) -> None:
        actor = global_worker.actors.get(global_worker.actor_id)
        # `ray.serve._private.replica.Replica`.
        self._replica: Any = getattr(actor, "_replica_impl", None)
        if self._replica is None:
            raise RuntimeError("This process is not a replica of Ray Serve.")

    @property
    def is_stopping(self) -> bool:
        return bool(self._replica._shutting_down)

    @property
    def stop_timeout_seconds(self) -> float:
        """How long Serve waits before it kills a stopping replica."""
        return float(self._replica._deployment_config.graceful_shutdown_timeout_s)

    @property
    def reserved_slots(self) -> Collection[str]:
        """The slots that are reserved and not used yet."""
        # A copy: the set is changed in another thread, Serve's own.
        return frozenset(self._replica._reserved_slots.copy())

    def release(self, slot: str) -> None:
        self._replica._event_loop.call_soon_threadsafe(self._replica.release_slot, slot)
