"""Retention: erases jobs with their originals and avatars, and removes events, once they are old enough."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import structlog

from avatarforge.background import monotonic, run_periodically
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence import JobRepository
from avatarforge.tracker.jobs.committer import Committer

log = structlog.get_logger(__name__)


class ConfirmedClock:
    """The time that this machine's clock and the database's both show: one that runs ahead erases nothing."""

    CONFIRMATION_DELAY_SECONDS = 900.0
    """Seconds, by the monotonic clock, after which both have to show the time again."""

    def __init__(self, store: JobRepository, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def read(self) -> datetime:
        """Return the earlier of the two times. Raises `DatabaseUnavailable`."""
        return min(self._now(), await asyncio.to_thread(self._store.read_clock))

    async def confirm(self) -> datetime:
        """Return the earliest of the times that both show now and, with what has passed, after the delay.

        Raises `DatabaseUnavailable`.
        """
        first, begun_at = await self.read(), monotonic()
        await asyncio.sleep(self.CONFIRMATION_DELAY_SECONDS)
        return min(first + timedelta(seconds=monotonic() - begun_at), await self.read())


class JobRetention:
    """Erases by age, as a client would: each job leaves a tombstone, then its rows and its objects go.

    Works in batches with pauses between them, so that whoever uploads meanwhile waits for one at most.
    """

    BATCH = 100
    """Jobs erased at a time."""
    PAUSE_SECONDS = 0.5
    """Seconds between two batches."""
    INTERVAL_SECONDS = 600.0
    """Seconds between two looks at what is old enough."""

    def __init__(
        self,
        shard: int,
        store: JobRepository,
        *,
        age: timedelta,
        erase: Callable[[Sequence[ProfilePhotoJob]], Awaitable[None]],
        clock: ConfirmedClock,
    ) -> None:
        """`age` counts from the upload; jobs that have not ended are left alone. 0 erases nothing."""
        self._shard = shard
        self._store = store
        self._age = age
        self._erase = erase
        self._clock = clock

    async def run(self) -> None:
        """Look for old jobs for ever. What the database breaks off is made up for later."""
        if self._age:
            await run_periodically(self._erase_old, self.INTERVAL_SECONDS)

    async def _erase_old(self) -> None:
        erased = 0
        try:
            before = await self._clock.confirm() - self._age
            while jobs := await asyncio.to_thread(self._store.list_ended, self._shard, before, self.BATCH):
                await self._erase(jobs)
                erased += len(jobs)
                await asyncio.sleep(self.PAUSE_SECONDS)
        except DatabaseUnavailable as error:
            log.warning("retention has to wait", shard=self._shard, reason=error.reason)
        except StaleEpoch:
            raise
        except Exception as error:
            # The edge of a look: a job that cannot be erased must not end the tracker each time anew.
            log.error("retention broke off", shard=self._shard, exc_info=error)
        if erased:
            log.info("jobs erased for their age", shard=self._shard, jobs=erased)


class EventRetention:
    """Removes old events from the log; jobs stay as they are."""

    PAGE = 1000
    """Events removed at a time."""
    INTERVAL_SECONDS = 600.0
    """Seconds between two looks at what is old enough."""

    def __init__(
        self, store: JobRepository, committer: Committer, *, age: timedelta, clock: ConfirmedClock
    ) -> None:
        self._store = store
        self._committer = committer
        self._age = age
        self._clock = clock

    async def run(self) -> None:
        """Look for old events for ever. What the database breaks off is made up for later."""
        await run_periodically(self._prune, self.INTERVAL_SECONDS)

    async def _prune(self) -> None:
        shard = self._committer.fence.shard
        try:
            before = await self._clock.confirm() - self._age
            while await self._committer.run_fenced(self._store.prune, before, self.PAGE):
                log.info("old events were removed", shard=shard, before=before.isoformat())
        except DatabaseUnavailable as error:
            log.warning("pruning has to wait", shard=shard, reason=error.reason)
