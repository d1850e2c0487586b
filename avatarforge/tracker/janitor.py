"""The janitor: removes from storage what was erased, and from the log what has grown old."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from avatarforge.domain.changes import Fence, ObjectDeletion
from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import job_prefix
from avatarforge.tracker.clocks import steady

log = structlog.get_logger(__name__)


class Deletions(Protocol):
    """Which objects have to go; `persistence.deletions.DeletionRecords` keeps it."""

    def due(self, shard: int, now: datetime, limit: int) -> list[ObjectDeletion]: ...

    def done(self, deletion_ids: Sequence[int], fence: Fence) -> None: ...

    def postpone(self, deletion_ids: Sequence[int], due_at: datetime, fence: Fence) -> None: ...


class Janitor:
    """Works through the recorded deletions, at once when woken and otherwise now and then.

    What storage or the database do not let it do now, it does later: nothing is forgotten.
    """

    PAGE = 100
    """Deletions read at a time."""
    PAUSE = 30.0
    """Seconds between two looks at what has become due."""
    PRUNE_EVERY = 600.0
    """Seconds between two looks at what has grown old."""
    POSTPONED = timedelta(minutes=10)
    """Until objects that storage did not let go are deleted again."""
    MOST_FAILURES = 3
    """Deletions that fail one after the other before storage counts as away."""
    THREADS = 2
    """Threads of its own, which end with it: storage that hangs must not take those from others, who read
    the database in them. What more there is to remove waits."""

    def __init__(
        self,
        shard: int,
        deletions: Deletions,
        storage: ObjectStorage,
        *,
        fence: Callable[[], Fence],
        prune: Callable[[], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        """`fence` is the tracker's; `prune` removes old entries of the log."""
        self._shard = shard
        self._deletions = deletions
        self._storage = storage
        self._fence = fence
        self._prune = prune
        self._now = now
        self._pruned_at = float("-inf")
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._threads = ThreadPoolExecutor(self.THREADS, thread_name_prefix="janitor")

    async def work_forever(self) -> None:
        """One round after the other."""
        while True:
            waiting, self._waiting = self._waiting, []
            self._wanted.clear()
            for work in (self._delete_due, self._prune_old):
                try:
                    await work()
                except (DatabaseUnavailable, StorageUnavailable) as error:
                    log.warning("cleaning has to wait", shard=self._shard, reason=error.reason)
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            try:
                async with asyncio.timeout(self.PAUSE):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def clean(self, seconds: float) -> None:
        """Return when what is due now has been worked through, after `seconds` at the latest."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        await asyncio.wait({future}, timeout=seconds)

    async def discard(self, key: str) -> None:
        """Remove an object that no job names, if storage answers."""
        try:
            await self._in_thread(self._storage.delete, key)
        except StorageUnavailable as error:
            log.warning("orphaned object was left", key=key, reason=error.reason)

    async def discard_stale(self, job: ProfilePhotoJob) -> None:
        """Remove what earlier attempts at a job that has ended have stored, if storage answers."""
        kept = {job.original.key} | ({job.outcome.avatar.key} if job.outcome is not None else set())
        try:
            await self._in_thread(self._delete_but, job_prefix(job.customer_id, job.job_id), kept)
        except StorageUnavailable as error:
            log.warning("stale objects were left to the sweeper", job_id=job.job_id, reason=error.reason)

    def _delete_but(self, prefix: str, kept: Collection[str]) -> None:
        for stored in list(self._storage.list(prefix)):
            if stored.key not in kept:
                self._storage.delete(stored.key)

    async def _delete_due(self) -> None:
        while due := await asyncio.to_thread(self._deletions.due, self._shard, self._now(), self.PAGE):
            await self._in_thread(self._delete, due)

    async def _prune_old(self) -> None:
        if steady() - self._pruned_at >= self.PRUNE_EVERY:
            self._pruned_at = steady()
            await self._prune()

    async def _in_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _delete(self, due: Sequence[ObjectDeletion]) -> None:
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
                if not done and len(kept) >= min(self.MOST_FAILURES, len(due)):
                    raise
                log.warning("objects were left", prefix=deletion.prefix, reason=error.reason)
        self._deletions.done(done, self._fence())
        self._deletions.postpone(kept, self._now() + self.POSTPONED, self._fence())
