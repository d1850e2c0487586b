"""Retention: erases jobs with their originals and avatars once they have reached their age."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from avatarforge.domain.errors import DatabaseUnavailable, Overtaken
from avatarforge.domain.jobs import ProfilePhotoJob

log = structlog.get_logger(__name__)


class AgedRecords(Protocol):
    """Which jobs have grown old; `persistence.jobs.JobRecords` keeps it. Blocks."""

    def outlived(self, shard: int, before: datetime, limit: int) -> list[ProfilePhotoJob]: ...


class Retention:
    """Erases by age, as a client would: each job leaves a tombstone, then its rows and its objects go.

    Works in batches with pauses between them, so that whoever uploads meanwhile waits for one at most.
    """

    BATCH = 100
    """Jobs erased at a time."""
    PAUSE = 0.5
    """Seconds between two batches."""
    EVERY = 600.0
    """Seconds between two looks at what has reached its age."""

    def __init__(
        self,
        shard: int,
        records: AgedRecords,
        *,
        age: timedelta,
        erase: Callable[[Sequence[ProfilePhotoJob]], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        """`age` counts from the upload; jobs that have not ended are left alone. 0 erases nothing."""
        self._shard = shard
        self._records = records
        self._age = age
        self._erase = erase
        self._now = now

    async def work_forever(self) -> None:
        """One look after the other; one that the database breaks off is made up for later."""
        while self._age:
            try:
                await self.erase_outlived()
            except DatabaseUnavailable as error:
                log.warning("retention has to wait", shard=self._shard, reason=error.reason)
            except Overtaken:
                raise
            except Exception as error:
                # The edge of a look: a job that cannot be erased must not end the tracker each time anew.
                log.error("retention broke off", shard=self._shard, exc_info=error)
            await asyncio.sleep(self.EVERY)

    async def erase_outlived(self) -> int:
        """Erase all that has reached its age; returns how many jobs. Raises `DatabaseUnavailable`."""
        before = self._now() - self._age
        erased = 0
        while jobs := await asyncio.to_thread(self._records.outlived, self._shard, before, self.BATCH):
            await self._erase(jobs)
            erased += len(jobs)
            await asyncio.sleep(self.PAUSE)
        if erased:
            log.info("jobs erased for their age", shard=self._shard, jobs=erased)
        return erased
