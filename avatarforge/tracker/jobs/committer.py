"""Group commit: many changes of many jobs in one transaction, in a thread.

There is one writer a shard and one transaction at a time, so that commit order is `seq` order.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from avatarforge.background import BackgroundTasks, Backoff, BlockingPool, monotonic, retry, run_periodically
from avatarforge.domain.changes import Fence, JobChange
from avatarforge.domain.errors import DatabaseUnavailable, ShardLeased, StaleEpoch, Unavailable
from avatarforge.persistence import JobRepository
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.availability import DatabaseOutage

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ChangeListener = Callable[[JobChange], None]


@dataclass(slots=True, eq=False)
class _Pending:
    change: JobChange
    future: asyncio.Future[JobChange]
    is_rejected: bool = False
    """Its caller was told 503: it must not stay, should it turn out to be committed."""


_Written = list[tuple[_Pending, int]]
"""What was written, with its `seq`s."""


class _Attempt:
    """Tries to write a group until that succeeds, and knows what the last try has come to."""

    def __init__(
        self,
        write: Callable[[list[_Pending]], _Written],
        store: JobRepository,
        group: list[_Pending],
        *,
        is_new: bool,
    ) -> None:
        """`is_new` unless some of the group may be written already."""
        self._write = write
        self._store = store
        self._group = group
        self._tried = [] if is_new else group

    def write(self) -> _Written:
        """Write the group, unless the last try has. What was rejected meanwhile is left out."""
        written = self.read_back()
        if written is None:
            self._tried = [pending for pending in self._group if not pending.is_rejected]
            written = self._write(self._tried)
        return written

    def read_back(self) -> _Written | None:
        """Return what the last try has written, `None` if it has certainly written nothing."""
        if not self._tried:
            return None
        seqs = self._store.read_back([pending.change for pending in self._tried])
        if seqs is None:
            self._tried = []
            return None
        return list(zip(self._tried, seqs, strict=True))


class _Unwritable(Exception):
    """Something in a group of changes keeps it from being written, though the database works."""

    def __init__(self, error: DatabaseUnavailable) -> None:
        super().__init__(error)
        self.error = error


class Committer:
    """Writes changes in the order in which they were asked for.

    A database that goes away is asked again with growing pauses for as long as it takes: changes of jobs
    wait, submissions are refused after a while. When a commit's outcome is unknown it is read back before
    anything is repeated, or anything else written: it may have got its number. A change that fails though
    the database works is tried beside the others from then on, and refused at last.
    """

    BACKOFF = Backoff(first=0.1, longest=2.0)
    TRIES = 5
    """How often a change fails until others may be written before it, and again, between those, until it is
    refused."""
    LEASE_RENEWAL_SECONDS = 3.0
    APART_BACKOFF = Backoff(first=1.0, longest=10.0)
    MIN_APART_SECONDS = 60.0
    """Seconds for which a change is tried beside the others at least: a network that loses much passes."""

    def __init__(
        self,
        store: JobRepository,
        shard: int,
        settings: TrackerSettings,
        outage: DatabaseOutage,
        on_broken: Callable[[Exception], None],
        registry: MetricsRegistry,
        cluster_id: str = "",
    ) -> None:
        """`on_broken` gets an error after which nothing is written any more, such as `StaleEpoch`. Without a
        `cluster_id` no other cluster is looked for."""
        self._store = store
        self._shard = shard
        self._settings = settings
        self._outage = outage
        self._on_broken = on_broken
        self._registry = registry
        self._cluster_id = cluster_id
        self._epoch = 0
        self._is_lease_late = False
        """Whether the lease was the first that could not be written in an outage."""
        self._queue: asyncio.Queue[_Pending | None] = asyncio.Queue()
        """Unbounded here: its callers wait for what they put in. `None` ends the writer."""
        self._under_way: list[_Pending] = []
        """The group being written. It stays once the writer has broken: its outcome is unknown."""
        self._pool = BlockingPool(1, "commit")
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        """Held while changes are written and told: others tell theirs after that."""
        self._apart: list[_Pending] = []
        """Changes that are tried beside the others."""
        self._writes = 0
        """Transactions that have written something."""
        self._tasks = BackgroundTasks(lambda _, error: on_broken(error))
        self._listeners, self._rejected_listeners = list[ChangeListener](), list[ChangeListener]()
        registry.register_gauge(metrics.DATABASE_UP, outage.get_up)
        registry.register_gauge(metrics.DATABASE_DEFECT, outage.get_defect)
        registry.register_gauge(metrics.TRACKER_IDLE, outage.get_idle)
        registry.register_gauge(metrics.TRACKER_EPOCH, self._get_epoch)

    def subscribe(self, *listeners: ChangeListener) -> None:
        """Call the listeners with every committed change, in the order of the numbers.

        They are called before whoever asked for the change wakes: of callers that wait in different ways the
        later may wake first.
        """
        self._listeners.extend(listeners)

    def subscribe_rejected(self, *listeners: ChangeListener) -> None:
        """Call the listeners with submissions that were committed after their callers were told otherwise."""
        self._rejected_listeners.extend(listeners)

    def _get_epoch(self) -> int:
        return self._epoch

    async def start(self) -> int:
        """Take the shard's epoch, waiting for the database, and while it is another cluster's, as long as it
        takes; and begin to write."""
        self._epoch = await retry(
            partial(
                self._pool.run, self._store.claim_shard, self._shard, self._settings.shards, self._cluster_id
            ),
            Unavailable,
            self.BACKOFF,
            on_error=self._note_no_claim,
        )
        self._outage.end()
        if self._cluster_id:
            renewals = run_periodically(self._keep_lease, self.LEASE_RENEWAL_SECONDS)
            self._tasks.spawn(renewals, "lease")
        self._task = asyncio.create_task(self._write_groups(), name="committer")
        return self._epoch

    def _note_no_claim(self, error: Unavailable, _: float) -> None:
        if isinstance(error, DatabaseUnavailable):
            self._outage.begin(error)
        else:
            self._outage.stay_idle(error)

    async def _keep_lease(self) -> None:
        """Tell other clusters that this one lives. Raises `ShardLeased` where a younger one takes over.

        It is a write like any other, so that a tracker without work, too, hears of an outage and of its end.
        """
        try:
            rival = await self.run_fenced(self._store.keep_lease, self._cluster_id)
        except DatabaseUnavailable as error:
            self._is_lease_late = self._is_lease_late or self._outage.has_ended()
            self._outage.suspect(error)
            return
        if self._is_lease_late and not self._outage.is_active():
            self._note_success()
        self._is_lease_late = False
        if rival is not None:
            raise ShardLeased(f"Shard {self._shard} is handed over to another cluster, {rival}.")

    @property
    def fence(self) -> Fence:
        """The proof that others who write for the shard show: it is checked in each of their transactions."""
        return Fence(self._shard, self._epoch)

    async def stop(self) -> None:
        """Write what waits, unless the database is away: then it is refused."""
        if self._task is not None:
            self._queue.put_nowait(None)
            if self._outage.is_active():
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._tasks.stop()
        stopping = DatabaseUnavailable("the tracker is stopping")
        for pending in self._apart:
            _refuse(pending, stopping)
        self._refuse_waiting(stopping)
        await self._pool.close()

    async def commit(self, change: JobChange) -> JobChange:
        """Write a job's change, however long the database is away. Returns it with its `seq`."""
        return await self._enqueue(change).future

    async def accept(self, change: JobChange) -> JobChange:
        """Write a submission or raise `DatabaseUnavailable`; then nothing of it stays."""
        self._outage.check()
        pending = self._enqueue(change)
        try:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                return await asyncio.shield(pending.future)
        except TimeoutError:
            if pending.future.done():
                # Committed in the very moment in which the time ran out.
                return pending.future.result()
            pending.is_rejected = True
            reason = f"no commit within {self._settings.commit_timeout_seconds} seconds"
            raise DatabaseUnavailable(reason) from None

    def check_outcome(self, job_id: str) -> None:
        """Raise `DatabaseUnavailable` while nobody can know whether the job's submission is committed."""
        if any(pending.change.job.job_id == job_id for pending in [*self._under_way, *self._apart]):
            raise DatabaseUnavailable("the outcome of the job's commit is not known yet")

    async def run_fenced(
        self, call: Callable[Concatenate[int, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Make the call with shard and epoch, between two groups. Returns or raises what it does."""
        return await self._call(call, self._shard, self._epoch, *args, **kwargs)

    async def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._outage.measure_call():
            return await self._pool.run(call, *args, **kwargs)

    # --- the writer --------------------------------------------------------------------------------

    def _enqueue(self, change: JobChange) -> _Pending:
        pending = _Pending(change, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(pending)
        return pending

    async def _write_groups(self) -> None:
        group: list[_Pending] = []
        try:
            while group := await self._next_group():
                self._under_way = [pending for pending in group if not pending.is_rejected]
                async with self._writing:
                    await self._settle(self._under_way, self.TRIES)
                self._under_way = []
        except Exception as error:
            # The writer's end: whoever waits must hear of it, and the owner must not go on without one.
            for pending in group:
                _refuse(pending, error)
            self._refuse_waiting(error)
            self._on_broken(error)

    async def _next_group(self) -> list[_Pending]:
        """Return what waits, at least one; nothing once the writer is to end."""
        group = []
        item = await self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == self._settings.max_commit_batch or self._queue.empty():
                return group
            item = self._queue.get_nowait()
        if group:
            self._queue.put_nowait(None)
        return group

    def _refuse_waiting(self, error: Exception) -> None:
        while not self._queue.empty():
            if (pending := self._queue.get_nowait()) is not None:
                _refuse(pending, error)

    async def _settle(self, group: list[_Pending], tries: int, *, is_new: bool = True) -> None:
        """Write the group and answer its callers. Once it has failed so many times, and the database works,
        its changes are tried one by one, and those that fail again are set apart. What is not new may be
        written already."""
        if not group:
            return
        try:
            await self._write(group, tries, is_new=is_new)
        except StaleEpoch:
            raise
        except _Unwritable as failure:
            if len(group) > 1:
                for pending in group:
                    await self._settle([pending], 1, is_new=False)
            else:
                self._set_apart(group[0], failure.error)
        except Exception as error:
            # One change that the database refuses must not take the others with it.
            if len(group) > 1:
                for pending in group:
                    await self._settle([pending], tries)
                return
            log.exception("change refused by the database", job_id=group[0].change.job.job_id)
            self._note_success()
            _refuse(group[0], error)

    async def _write(self, group: list[_Pending], tries: int, *, is_new: bool) -> None:
        """Write the group, however long the database is away. Raises `_Unwritable` once that has failed so
        many times, and once more after the database was found to work."""
        attempt, failures = _Attempt(self._try, self._store, group, is_new=is_new), 0

        async def write_or_give_up() -> _Written:
            nonlocal failures
            if failures < tries:
                failures += 1
                return await self._call(attempt.write)
            await self._call(self._store.check, self._shard, self._epoch)
            try:
                return await self._call(attempt.write)
            except DatabaseUnavailable as error:
                if (written := await self._call(attempt.read_back)) is None:
                    raise _Unwritable(error) from error
                return written

        self._confirm(
            await retry(write_or_give_up, DatabaseUnavailable, self.BACKOFF, on_error=self._outage.begin)
        )

    def _try(self, group: list[_Pending]) -> _Written:
        if not group:
            # All were rejected: the outage is over if they could be written now.
            self._store.check(self._shard, self._epoch)
            return []
        changes = [pending.change for pending in group]
        begun = time.perf_counter()
        seqs = self._store.commit(self._shard, self._epoch, changes)
        self._registry.observe(metrics.COMMIT_SECONDS, time.perf_counter() - begun)
        self._registry.observe(metrics.COMMIT_CHANGES, len(group))
        return list(zip(group, seqs, strict=True))

    def _confirm(self, written: _Written) -> None:
        """Tell everybody of what was written."""
        self._writes += bool(written)
        self._note_success()
        for pending, seq in written:
            numbered = pending.change.with_seq(seq)
            for listener in self._rejected_listeners if pending.is_rejected else self._listeners:
                listener(numbered)
            if not pending.is_rejected and not pending.future.done():
                pending.future.set_result(numbered)

    def _note_success(self) -> None:
        if self._apart:
            self._outage.suspend()
        else:
            self._outage.end()

    # --- changes that fail by themselves -----------------------------------------------------------

    def _set_apart(self, pending: _Pending, error: DatabaseUnavailable) -> None:
        """Try the change from now and then, beside the others."""
        log.warning("change is set apart", job_id=pending.change.job.job_id, reason=error.reason)
        self._apart.append(pending)
        self._outage.suspend()
        self._tasks.spawn(self._write_apart(pending), "change set apart")

    async def _write_apart(self, pending: _Pending) -> None:
        """Write the change, or refuse it once it has failed again and again while others were written."""
        attempt = _Attempt(self._try, self._store, [pending], is_new=False)
        begun_at, writes, failures = monotonic(), self._writes, 0
        for delay in self.APART_BACKOFF.delays():
            await asyncio.sleep(delay)
            async with self._writing:
                try:
                    written = await self._write_or_read_back(attempt)
                    self._apart.remove(pending)
                    self._confirm(written)
                    return
                except StaleEpoch:
                    raise
                except _Unwritable as failure:
                    failures += self._writes > writes
                    writes = self._writes
                    if failures < self.TRIES or monotonic() < begun_at + self.MIN_APART_SECONDS:
                        continue
                    refused: Exception = failure.error
                except Exception as error:
                    refused = error
                log.error("change is given up", job_id=pending.change.job.job_id, exc_info=refused)
                self._apart.remove(pending)
                self._note_success()
                _refuse(pending, refused)
                return

    async def _write_or_read_back(self, attempt: _Attempt) -> _Written:
        """Write, or raise `_Unwritable` once it is certain that nothing was, however long that takes."""
        try:
            return await self._call(attempt.write)
        except DatabaseUnavailable as error:
            failure = error
        written = await retry(
            partial(self._call, attempt.read_back),
            DatabaseUnavailable,
            self.BACKOFF,
            on_error=self._outage.begin,
        )
        if written is None:
            self._note_success()
            raise _Unwritable(failure)
        return written


def _refuse(pending: _Pending, error: Exception) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)
        # A caller that has gone away must not turn this into "exception was never retrieved".
        pending.future.exception()
