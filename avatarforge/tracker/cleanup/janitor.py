"""The janitor: removes from storage what was erased, and what nobody needs any more."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import structlog

from avatarforge.background import BackgroundTasks, BlockingPool, run_periodically, wait_for_event
from avatarforge.domain.changes import JobChange, ObjectDeletion
from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.domain.status import TERMINAL_EVENTS, ProcessingStatus
from avatarforge.persistence import DeletionRepository
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import job_prefix
from avatarforge.tracker.cleanup.retention import ConfirmedClock
from avatarforge.tracker.jobs.committer import Committer

log = structlog.get_logger(__name__)


class Janitor:
    """Works through the recorded deletions, at once when woken and otherwise now and then.

    What storage or the database do not let it do now, it does later: nothing is forgotten.
    """

    PAGE = 100
    """Deletions read at a time."""
    INTERVAL_SECONDS = 30.0
    """Seconds between two looks at what has become due."""
    POSTPONEMENT = timedelta(minutes=10)
    """Until objects that storage did not let go are deleted again."""
    MAX_FAILURES = 3
    """Deletions that fail one after the other before storage counts as away."""
    THREADS = 2
    """Threads of its own, which end with it: storage that hangs must not take those from others, who read
    the database in them. What more there is to remove waits."""

    def __init__(
        self,
        committer: Committer,
        deletions: DeletionRepository,
        storage: ObjectStorage,
        tasks: BackgroundTasks,
        clock: ConfirmedClock,
    ) -> None:
        """By the clock objects are due: one that runs ahead must not use up the deletion that is made again
        once a replica can be at work no more."""
        self._committer = committer
        self._deletions = deletions
        self._storage = storage
        self._tasks = tasks
        self._clock = clock
        self._wake = asyncio.Event()
        self._next_round = asyncio.Event()
        """Set at the end of the round that has not begun yet."""
        self._pool = BlockingPool(self.THREADS, "janitor")

    async def run(self) -> None:
        """Delete what is due, for ever."""
        await run_periodically(self._work, self.INTERVAL_SECONDS, wake=self._wake)

    async def clean(self, timeout_seconds: float) -> None:
        """Return when what is due now has been worked through, or when the time is over."""
        self._wake.set()
        await wait_for_event(self._next_round, timeout_seconds)

    def on_change(self, change: JobChange) -> None:
        """Remove what earlier attempts have stored, once their job has ended."""
        job = change.job
        is_cut_short = job.status is not ProcessingStatus.DONE and job.parameters.variants > 1
        is_failed = job.status is ProcessingStatus.FAILED
        has_stale = job.attempt > 1 or (job.attempt == 1 and (is_failed or is_cut_short))
        if change.event.kind in TERMINAL_EVENTS and has_stale:
            self._tasks.spawn(self._delete_stale(job), "delete stale objects")

    def discard(self, image: StoredImage) -> None:
        """Remove an image that no job names, if storage answers."""
        self._tasks.spawn(self._delete_orphan(image.key), "delete orphan")

    async def _work(self) -> None:
        this_round, self._next_round = self._next_round, asyncio.Event()
        try:
            await self._delete_due()
        except (DatabaseUnavailable, StorageUnavailable) as error:
            log.warning("cleaning has to wait", shard=self._committer.fence.shard, reason=error.reason)
        this_round.set()

    async def _delete_orphan(self, key: str) -> None:
        try:
            await self._pool.run(self._storage.delete, key)
        except StorageUnavailable as error:
            log.warning("orphaned object was left", key=key, reason=error.reason)

    async def _delete_stale(self, job: ProfilePhotoJob) -> None:
        try:
            await self._pool.run(
                self._delete_all_but, job_prefix(job.customer_id, job.job_id), job.object_keys
            )
        except StorageUnavailable as error:
            log.warning("stale objects were left to the sweeper", job_id=job.job_id, reason=error.reason)

    def _delete_all_but(self, prefix: str, kept: Collection[str]) -> None:
        for stored in list(self._storage.list(prefix)):
            if stored.key not in kept:
                self._storage.delete(stored.key)

    async def _delete_due(self) -> None:
        shard, now = self._committer.fence.shard, await self._clock.read()
        while due := await asyncio.to_thread(self._deletions.list_due, shard, now, self.PAGE):
            await self._pool.run(self._delete, due, now)

    def _delete(self, due: Sequence[ObjectDeletion], now: datetime) -> None:
        """Delete what storage lets go; what it keeps is put off, so that it holds nothing else up.

        Raises `StorageUnavailable` when it lets nothing go.
        """
        done: list[int] = []
        kept: list[int] = []
        for deletion in due:
            try:
                for stored in list(self._storage.list(deletion.prefix)):
                    self._storage.delete(stored.key)
                done.append(deletion.deletion_id)
            except StorageUnavailable as error:
                kept.append(deletion.deletion_id)
                if not done and len(kept) >= min(self.MAX_FAILURES, len(due)):
                    raise
                log.warning("objects were left", prefix=deletion.prefix, reason=error.reason)
        fence = self._committer.fence
        self._deletions.complete(done, fence)
        self._deletions.postpone(kept, now + self.POSTPONEMENT, fence)
