"""Group commit: many changes of many jobs in one transaction, in a thread.

There is one writer a shard and one transaction at a time, so that commit order is `seq` order.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from avatarforge.domain.changes import Fence, JobChange
from avatarforge.domain.errors import DatabaseUnavailable, Overtaken
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ChangeLog(Protocol):
    """What the committer needs of the database; `persistence.jobs.JobRecords` keeps it."""

    def claim_shard(self, shard: int) -> int: ...

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]: ...

    def committed(self, changes: Sequence[JobChange]) -> list[int] | None: ...


@dataclass(slots=True, eq=False)
class _Pending:
    change: JobChange
    future: asyncio.Future[JobChange]
    disowned: bool = False
    """Its caller was told 503: it must not stay, should it turn out to be committed."""


class Committer:
    """Writes changes in the order in which they were asked for.

    A database that goes away is asked again with growing pauses for as long as it takes: moves of jobs
    wait, submissions are refused after `accept_timeout` seconds. When a commit's outcome is unknown it is
    read back before anything is repeated.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
    """Seconds between two attempts to reach the database."""

    def __init__(
        self,
        records: ChangeLog,
        shard: int,
        *,
        batch: int,
        accept_timeout: float,
        on_committed: Callable[[JobChange], None],
        on_disowned: Callable[[JobChange], None],
        on_broken: Callable[[Exception], None],
        figures: Figures | None = None,
    ) -> None:
        """`on_committed` hears of every change in the order of the numbers, before whoever asked for it: of
        callers that wait in different ways the later may wake first. `on_broken` hears of an error after
        which nothing is written any more, such as `Overtaken`."""
        self._records = records
        self._shard = shard
        self._batch = batch
        self._accept_timeout = accept_timeout
        self._on_committed = on_committed
        self._on_disowned = on_disowned
        self._on_broken = on_broken
        self._epoch = 0
        self._queue: asyncio.Queue[_Pending | None] = asyncio.Queue()
        """Unbounded here: its callers wait for what they put in. `None` ends the writer."""
        self._under_way: list[_Pending] = []
        """What is being written. It stays what it was once the writer has broken: its outcome is unknown."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._task: asyncio.Task[None] | None = None
        self.outage: DatabaseUnavailable | None = None
        """Why the database does not answer at present."""
        self._figures = figures or Figures()
        self._figures.watch(metrics.DATABASE_AWAY, lambda: self.outage is not None)
        self._figures.watch(metrics.TRACKER_EPOCH, lambda: self._epoch)

    async def start(self) -> int:
        """Take the shard's epoch, waiting for the database as long as it takes, and begin to write."""
        self._epoch = await self._persistently(lambda: self._records.claim_shard(self._shard))
        self._task = asyncio.create_task(self._write_forever(), name="committer")
        return self._epoch

    @property
    def fence(self) -> Fence:
        """What others that write for the shard have to show: it is checked in each of their transactions."""
        return Fence(self._shard, self._epoch)

    async def stop(self) -> None:
        """Write what waits, unless the database is away: then it is refused."""
        if self._task is not None:
            self._queue.put_nowait(None)
            if self.outage is not None:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse_waiting(DatabaseUnavailable("the tracker is stopping"))
        await asyncio.to_thread(self._thread.shutdown)

    async def commit(self, change: JobChange) -> JobChange:
        """Write a job's move, however long the database is away. Returns it with its `seq`."""
        return await self._enqueued(change).future

    async def accept(self, change: JobChange) -> JobChange:
        """Write a submission or raise `DatabaseUnavailable`; then nothing of it stays."""
        if self.outage is not None:
            raise DatabaseUnavailable(self.outage.reason)
        pending = self._enqueued(change)
        try:
            async with asyncio.timeout(self._accept_timeout):
                return await asyncio.shield(pending.future)
        except TimeoutError:
            if pending.future.done():
                # Committed in the very moment in which the time ran out.
                return pending.future.result()
            pending.disowned = True
            raise DatabaseUnavailable(f"no commit within {self._accept_timeout} seconds") from None

    def check_settled(self, job_id: str) -> None:
        """Raise `DatabaseUnavailable` while nobody can know whether the job's submission is committed."""
        if any(pending.change.job.job_id == job_id for pending in self._under_way):
            raise DatabaseUnavailable("the outcome of the job's commit is not known yet")

    async def beside(self, call: Callable[[int], T]) -> T:
        """What the call returns, made with the epoch between two groups. Raises what it raises."""
        return await self._in_thread(lambda: call(self._epoch))

    # --- the writer --------------------------------------------------------------------------------

    def _enqueued(self, change: JobChange) -> _Pending:
        pending = _Pending(change, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(pending)
        return pending

    async def _write_forever(self) -> None:
        group: list[_Pending] = []
        try:
            while group := await self._next_group():
                self._under_way = [pending for pending in group if not pending.disowned]
                await self._settle(self._under_way)
                self._under_way = []
        except Exception as error:
            # The writer's end: whoever waits must hear of it, and the owner must not go on without one.
            for pending in group:
                _refuse(pending, error)
            self._refuse_waiting(error)
            self._on_broken(error)

    async def _next_group(self) -> list[_Pending]:
        """What waits, at least one; nothing once the writer is to end."""
        group = []
        item = await self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == self._batch or self._queue.empty():
                return group
            item = self._queue.get_nowait()
        if group:
            self._queue.put_nowait(None)
        return group

    def _refuse_waiting(self, error: Exception) -> None:
        while not self._queue.empty():
            if (pending := self._queue.get_nowait()) is not None:
                _refuse(pending, error)

    async def _settle(self, group: list[_Pending]) -> None:
        """Write the group and tell its callers."""
        if not group:
            return
        try:
            written = await self._written(group)
        except Overtaken:
            raise
        except Exception as error:
            # One change that the database refuses must not take the others with it.
            if len(group) > 1:
                for pending in group:
                    await self._settle([pending])
                return
            log.exception("change refused by the database", job_id=group[0].change.job.job_id)
            _refuse(group[0], error)
            return
        for pending, seq in written:
            self._confirm(pending, seq)

    async def _written(self, group: list[_Pending]) -> list[tuple[_Pending, int]]:
        """The changes that were written, with their numbers.

        Outages end here: the outcome of the last try is read back before anything is repeated, and what
        was disowned meanwhile is left out.
        """
        try:
            return await self._in_thread(lambda: self._try(group))
        except DatabaseUnavailable as error:
            self._went_away(error)
        tried = group

        def read_back_or_repeat() -> list[tuple[_Pending, int]]:
            nonlocal tried
            seqs = self._records.committed([pending.change for pending in tried])
            if seqs is not None:
                return list(zip(tried, seqs, strict=True))
            tried = [pending for pending in tried if not pending.disowned]
            return self._try(tried)

        return await self._persistently(read_back_or_repeat)

    def _try(self, group: list[_Pending]) -> list[tuple[_Pending, int]]:
        if not group:
            return []
        changes = [pending.change for pending in group]
        begun = time.perf_counter()
        seqs = self._records.commit(self._shard, self._epoch, changes)
        self._figures.observe(metrics.COMMIT_SECONDS, time.perf_counter() - begun)
        self._figures.observe(metrics.COMMIT_CHANGES, len(group))
        return list(zip(group, seqs, strict=True))

    def _confirm(self, pending: _Pending, seq: int) -> None:
        numbered = pending.change.numbered(seq)
        if pending.disowned:
            self._on_disowned(numbered)
            return
        self._on_committed(numbered)
        if not pending.future.done():
            pending.future.set_result(numbered)

    # --- outages -----------------------------------------------------------------------------------

    async def _persistently(self, call: Callable[[], T]) -> T:
        """The call's result, tried until the database answers."""
        pause = self.FIRST_PAUSE
        while True:
            try:
                return await self._in_thread(call)
            except DatabaseUnavailable as error:
                self._went_away(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self.LONGEST_PAUSE)

    def _went_away(self, error: DatabaseUnavailable) -> None:
        if self.outage is None:
            log.warning("database does not answer", shard=self._shard, reason=error.reason)
        self.outage = error

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except DatabaseUnavailable:
            raise
        except Exception:
            self._came_back()
            raise
        self._came_back()
        return result

    def _came_back(self) -> None:
        """Whatever the database answers, it answers."""
        if self.outage is not None:
            log.info("database is back", shard=self._shard)
            self.outage = None


def _refuse(pending: _Pending, error: Exception) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)
        # A caller that has gone away must not turn this into "exception was never retrieved".
        pending.future.exception()
