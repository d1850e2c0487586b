"""The sweeper: finds objects in storage that belong to no job, and removes them.

They are left by processes that died between storing an object and committing its job, or between the end
of a job and the removal of what its earlier attempts had made.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Protocol

import structlog

from avatarforge.domain.changes import KeptObjects
from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable
from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.storage.keys import ALL_JOBS, owner_of

log = structlog.get_logger(__name__)


class ObjectRecords(Protocol):
    """Which objects belong to jobs; `persistence.jobs.JobRecords` keeps it."""

    def objects_of(self, job_ids: Collection[str]) -> Mapping[str, KeptObjects]: ...


class Sweeper:
    """Looks through all of storage now and then, page by page, in threads.

    It is careful: an object goes only when it is old, no job on record names it, and its job has ended or is
    not on record. Where more is orphaned than is not, the record is taken for the wrong one (an empty
    database, another service's bucket) and nothing is removed.
    """

    PAGE = 500
    """Objects looked up at a time."""
    PAUSE = 0.05
    """Seconds between two pages: nobody waits for it, and others need the database."""
    FIRST = 600.0
    """Seconds until the first sweep of a tracker, which has more urgent work at its start."""
    MOST = 10_000
    """Objects removed in one sweep; more go with the next."""
    CONFIRM = 900.0
    """Seconds after which what was found is looked up again before it goes, by the steady clock: where the
    time of day has jumped ahead, an upload that is under way looks old."""
    FEW = 100
    """Orphans that are removed even where the record knows fewer objects."""

    def __init__(
        self,
        records: ObjectRecords,
        storage: ObjectStorage,
        *,
        owns: Callable[[str], bool],
        every: timedelta,
        age: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        """`owns` tells whether a customer's objects are this sweeper's."""
        self._records = records
        self._storage = storage
        self._owns = owns
        self._every = every
        self._age = age
        self._now = now

    async def work_forever(self) -> None:
        """One sweep after the other; one that storage or the database breaks off is made up for later."""
        pause = self.FIRST
        while True:
            await asyncio.sleep(pause)
            pause = self._every.total_seconds()
            try:
                await self.sweep()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                log.warning("sweep broken off", reason=error.reason)
                pause = min(pause, self.FIRST)

    async def sweep(self) -> int:
        """Look through storage once; returns how many objects were removed.

        Raises `DatabaseUnavailable` and `StorageUnavailable`.
        """
        before = self._now() - self._age
        orphans: list[str] = []
        known = 0
        listing = await asyncio.to_thread(self._storage.list, ALL_JOBS)
        while (page := await asyncio.to_thread(_next_page, listing, self.PAGE)) and len(orphans) < self.MOST:
            old = [stored.key for stored in page if stored.modified_at < before and self._is_ours(stored.key)]
            found = await asyncio.to_thread(self._orphans, old)
            known += len(old) - len(found)
            orphans += found
            await asyncio.sleep(self.PAUSE)
        if len(orphans) > max(known, self.FEW):
            log.error("more objects are orphaned than not: is this their database?", orphans=len(orphans))
            return 0
        removed = await self._removed(orphans) if orphans else 0
        log.info("storage swept", removed=removed, known=known)
        return removed

    async def _removed(self, suspects: Sequence[str]) -> int:
        """Remove those that are orphans still, after a while; returns how many."""
        await asyncio.sleep(self.CONFIRM)
        removed = 0
        for begin in range(0, len(suspects), self.PAGE):
            orphans = await asyncio.to_thread(self._orphans, suspects[begin : begin + self.PAGE])
            for key in orphans:
                await asyncio.to_thread(self._storage.delete, key)
            removed += len(orphans)
        return removed

    def _is_ours(self, key: str) -> bool:
        owner = owner_of(key)
        return owner is not None and self._owns(owner[0])

    def _orphans(self, keys: Sequence[str]) -> list[str]:
        if not keys:
            return []
        jobs = {key: owner[1] for key in keys if (owner := owner_of(key)) is not None}
        kept = self._records.objects_of(set(jobs.values()))
        return [key for key, job_id in jobs.items() if job_id not in kept or kept[job_id].is_orphan(key)]


def _next_page(listing: Iterator[StoredObject], most: int) -> list[StoredObject]:
    return list(islice(listing, most))
