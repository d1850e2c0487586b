"""The sweeper: finds objects in storage that belong to no job, and removes them.

They are left by processes that died between storing an object and committing its job, or between the end
of a job and the removal of what its earlier attempts had made.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice

import structlog

from avatarforge.background import Backoff, retry, run_periodically
from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable, Unavailable
from avatarforge.persistence import JobRepository
from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.storage.keys import ALL_JOBS, owner_of

log = structlog.get_logger(__name__)


class Sweeper:
    """Looks through all of storage now and then, page by page, in threads.

    It is careful: an object goes only when it is old, no job on record names it, and its job has ended or is
    not on record. Where more is orphaned than is not, the record is taken for the wrong one (an empty
    database, another service's bucket) and nothing is removed.
    """

    PAGE = 500
    """Objects looked up at a time."""
    PAGE_PAUSE_SECONDS = 0.05
    """Seconds between two pages: nobody waits for it, and others need the database."""
    FIRST_DELAY_SECONDS = 600.0
    """Seconds until the first sweep of a tracker, which has more urgent work at its start, and until one that
    was broken off is made up for."""
    MAX_REMOVED = 10_000
    """Objects removed in one sweep; more go with the next."""
    CONFIRMATION_DELAY_SECONDS = 900.0
    """Seconds after which what was found is looked up again before it goes, by the monotonic clock: where the
    time of day has jumped ahead, an upload that is under way looks old."""
    MIN_SUSPICIOUS_ORPHANS = 100
    """Orphans that are removed even where the database knows fewer objects."""

    def __init__(
        self,
        store: JobRepository,
        storage: ObjectStorage,
        *,
        owns_customer: Callable[[str], bool],
        interval: timedelta,
        age: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        """`owns_customer` tells whether the objects of the customer with this id are this sweeper's."""
        self._store = store
        self._storage = storage
        self._owns_customer = owns_customer
        self._interval_seconds = interval.total_seconds()
        self._age = age
        self._now = now

    async def run(self) -> None:
        """Sweep for ever; a sweep that storage or the database breaks off is made up for later."""
        await run_periodically(
            self._sweep_until_done, self._interval_seconds, first_delay_seconds=self.FIRST_DELAY_SECONDS
        )

    async def _sweep_until_done(self) -> None:
        delay = min(self._interval_seconds, self.FIRST_DELAY_SECONDS)
        errors = (DatabaseUnavailable, StorageUnavailable)
        await retry(self.sweep, errors, Backoff(delay, delay), on_error=_log_broken_off)

    async def sweep(self) -> int:
        """Look through storage once; returns how many objects were removed.

        Raises `DatabaseUnavailable` and `StorageUnavailable`.
        """
        before = self._now() - self._age
        orphans: list[str] = []
        known = 0
        listing = await asyncio.to_thread(self._storage.list, ALL_JOBS)
        while (page := await asyncio.to_thread(_next_page, listing, self.PAGE)) and len(
            orphans
        ) < self.MAX_REMOVED:
            old = [stored.key for stored in page if stored.modified_at < before and self._is_ours(stored.key)]
            found = await asyncio.to_thread(self._find_orphans, old)
            known += len(old) - len(found)
            orphans += found
            await asyncio.sleep(self.PAGE_PAUSE_SECONDS)
        if len(orphans) > max(known, self.MIN_SUSPICIOUS_ORPHANS):
            log.error("more objects are orphaned than not: is this their database?", orphans=len(orphans))
            return 0
        removed = await self._remove(orphans) if orphans else 0
        log.info("storage swept", removed=removed, known=known)
        return removed

    async def _remove(self, suspects: Sequence[str]) -> int:
        """Remove those that are orphans still, after a while; returns how many."""
        await asyncio.sleep(self.CONFIRMATION_DELAY_SECONDS)
        removed = 0
        for begin in range(0, len(suspects), self.PAGE):
            orphans = await asyncio.to_thread(self._find_orphans, suspects[begin : begin + self.PAGE])
            for key in orphans:
                await asyncio.to_thread(self._storage.delete, key)
            removed += len(orphans)
        return removed

    def _is_ours(self, key: str) -> bool:
        owner = owner_of(key)
        return owner is not None and self._owns_customer(owner[0])

    def _find_orphans(self, keys: Sequence[str]) -> list[str]:
        if not keys:
            return []
        jobs = {key: owner[1] for key in keys if (owner := owner_of(key)) is not None}
        kept = self._store.list_objects(set(jobs.values()))
        return [key for key, job_id in jobs.items() if job_id not in kept or kept[job_id].is_orphan(key)]


def _log_broken_off(error: Unavailable, _: float) -> None:
    log.warning("sweep broken off", reason=error.reason)


def _next_page(listing: Iterator[StoredObject], limit: int) -> list[StoredObject]:
    return list(islice(listing, limit))
