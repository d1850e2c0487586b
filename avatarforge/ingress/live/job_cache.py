"""An ingress replica's cache of live jobs, fed by the trackers: reads and waits cost no actor call."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import structlog

from avatarforge.domain.changes import LoggedChange
from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import EventKind, JobEvent, ProcessingStatus
from avatarforge.ingress.live.events import Changed, Erased, Progressed, Subscription
from avatarforge.messages import LiveJob
from avatarforge.settings import IngressSettings
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.client import TrackerClient
from avatarforge.tracker.eta import Forecast
from avatarforge.tracker.feed import FeedBatch, FeedCursor

log = structlog.get_logger(__name__)


class JobCache:
    """Unfinished jobs, and those that finished in the last minutes, as the trackers told them.

    A read may be some milliseconds behind a change made through another replica.
    """

    FEED_WAIT_SECONDS = 2.0
    """How long a tracker may hold a read while there is nothing to tell."""
    MIN_READ_INTERVAL_SECONDS = 0.01
    """Under load one read returns many changes."""
    MAX_SILENT_SECONDS = 6.0
    """Seconds for which a tracker may be away: that long it takes at most to be replaced."""
    RETRY_SECONDS = 0.3
    """Until an unavailable tracker is read again."""
    FIRST_READ_TIMEOUT_SECONDS = 5.0
    """How long a stream waits for a tracker that has not answered yet."""

    def __init__(
        self, source: TrackerClient, settings: IngressSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`settings` say how many finished jobs and changes are kept, oldest out first; older ones are in the
        database."""
        self._source = source
        self._clock = clock
        self._shards = [
            _Shard(settings.recent_jobs, settings.recent_events, clock) for _ in range(source.shards)
        ]
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow the trackers. Needs a running event loop."""
        self._tasks = [
            asyncio.create_task(self._follow(number), name=f"feed {number}")
            for number in range(len(self._shards))
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def register_gauges(self, registry: MetricsRegistry) -> None:
        registry.register_gauge(metrics.SUBSCRIBERS, lambda: self.waiter_count, "long_poll")
        registry.register_gauge(metrics.FEED_LAG, lambda: self.lag)

    @property
    def lag(self) -> float:
        """Seconds since the most silent tracker answered; infinite before its first answer."""
        now = self._clock()
        return max(now - shard.heard_at for shard in self._shards)

    @property
    def outage(self) -> str | None:
        """Why a tracker does not accept uploads; `None` if all do."""
        return next((shard.outage for shard in self._shards if shard.outage is not None), None)

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """The newest report of every replica, in the order of their ids."""
        newest: dict[str, ReplicaReport] = {}
        for report in (report for shard in self._shards for report in shard.reports):
            known = newest.get(report.replica_id)
            if known is None or known.reported_at < report.reported_at:
                newest[report.replica_id] = report
        return tuple(newest[replica_id] for replica_id in sorted(newest))

    def get(self, customer_id: str, job_id: str) -> LiveJob | None:
        """Return the cached job; `None` if it has to be read from the database."""
        shard = self._shard(customer_id)
        job = shard.unfinished.get(job_id) or shard.finished.get(job_id)
        if job is None or job.customer_id != customer_id:
            return None
        return shard.live(job)

    def put(self, job: ProfilePhotoJob) -> LiveJob:
        """Take a job that this replica has just changed: it is readable before the feed tells of it. Returns
        it as it stands."""
        shard = self._shard(job.customer_id)
        # What the feed has told already, it may also have told to be erased.
        if job.seq > shard.seq and shard.put(job):
            self._wake(job.job_id)
        return self.get(job.customer_id, job.job_id) or LiveJob(job=job)

    def remove(self, customer_id: str, job_id: str) -> None:
        """Drop a job that this replica has just erased, before the feed tells of it."""
        if self.get(customer_id, job_id) is not None:
            self._shard(customer_id).drop(job_id)
            self._wake(job_id)

    def remove_customer(self, customer_id: str) -> None:
        shard = self._shard(customer_id)
        for job in [*shard.unfinished.values(), *shard.finished.values()]:
            self.remove(customer_id, job.job_id)

    async def wait_for(
        self, customer_id: str, job_id: str, is_enough: Callable[[ProfilePhotoJob], bool], seconds: float
    ) -> LiveJob | None:
        """Return the job once `is_enough` holds, or as it is after `seconds`; `None` if it is not cached."""
        deadline = self._clock() + seconds
        while True:
            live = self.get(customer_id, job_id)
            left = deadline - self._clock()
            if live is None or is_enough(live.job) or left <= 0:
                return live
            await self._wait_for_change(job_id, left)

    # --- for streams ----------------------------------------------------------------------------------

    async def wait_until_ready(self, customer_id: str) -> None:
        """Return once the customer's tracker has told what is unfinished. Raises `TrackerUnavailable`."""
        known = self._shard(customer_id).known
        try:
            async with asyncio.timeout(self.FIRST_READ_TIMEOUT_SECONDS):
                await known.wait()
        except TimeoutError:
            # In a busy process both may fall due at once.
            if not known.is_set():
                raise TrackerUnavailable("it has not answered yet") from None

    def seq(self, customer_id: str) -> int:
        """Return the number of the last change of the customer's shard."""
        return self._shard(customer_id).seq

    def list_unfinished(self, customer_id: str) -> tuple[LiveJob, ...]:
        """Return the customer's unfinished jobs, oldest first."""
        shard = self._shard(customer_id)
        jobs = [job for job in shard.unfinished.values() if job.customer_id == customer_id]
        return tuple(shard.live(job) for job in sorted(jobs, key=lambda job: job.job_id))

    def recent_changes(self, customer_id: str, after: int) -> Sequence[LoggedChange] | None:
        """Return the customer's changes with higher numbers; `None` if the database has to be read."""
        return self._shard(customer_id).recent_changes(customer_id, after)

    @contextmanager
    def subscribe(self, customer_id: str, job_id: str | None, max_changes: int) -> Iterator[Subscription]:
        """Open a queue of everything that happens to the customer's jobs, or to one of them."""
        subscription = Subscription(customer_id, job_id, max_changes)
        listeners = self._subscriptions.setdefault(customer_id, set())
        listeners.add(subscription)
        try:
            yield subscription
        finally:
            listeners.discard(subscription)
            if not listeners and self._subscriptions.get(customer_id) is listeners:
                del self._subscriptions[customer_id]

    @property
    def waiter_count(self) -> int:
        """Number of long polls."""
        return sum(len(waiters) for waiters in self._waiters.values())

    async def _wait_for_change(self, job_id: str, seconds: float) -> None:
        """Wait until the feed tells of the job, at most `seconds`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(job_id, set())
        waiters.add(future)
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(job_id) is waiters:
                del self._waiters[job_id]

    def _wake(self, job_id: str) -> None:
        for future in self._waiters.pop(job_id, ()):
            if not future.done():
                future.set_result(None)

    # --- reading the feed -------------------------------------------------------------------------------

    async def _follow(self, number: int) -> None:
        shard, cursor = self._shards[number], FeedCursor()
        while True:
            read_at = self._clock()
            try:
                batch = await self._source.read_feed(number, cursor, self.FEED_WAIT_SECONDS)
                changed = shard.apply(batch)
                self._publish(shard, batch)
            except TrackerUnavailable as error:
                log.warning("tracker is away", shard=number, reason=error.reason)
                if self._clock() - shard.heard_at > self.MAX_SILENT_SECONDS:
                    shard.outage = str(error)
                await asyncio.sleep(self.RETRY_SECONDS)
                continue
            except Exception:
                # The edge of a feed: after a batch that cannot be applied, it begins anew, without a cursor.
                log.exception("feed broke", shard=number)
                cursor = FeedCursor()
                shard.reset()
                self._overflow(number)
                await asyncio.sleep(self.RETRY_SECONDS)
                continue
            cursor, shard.outage = batch.cursor, batch.outage
            shard.heard_at = self._clock()
            for job_id in changed:
                self._wake(job_id)
            await asyncio.sleep(max(0.0, read_at + self.MIN_READ_INTERVAL_SECONDS - self._clock()))

    def _publish(self, shard: "_Shard", batch: FeedBatch) -> None:
        for change in batch.changes:
            listeners = self._subscriptions.get(change.event.customer_id)
            if listeners and (event := shard.to_event(change)) is not None:
                for subscription in listeners:
                    subscription.put(event)
        for job_id in batch.progress:
            job = shard.unfinished.get(job_id)
            if job is None or not (listeners := self._subscriptions.get(job.customer_id)):
                continue
            progress = batch.progress[job_id]
            step = Progressed(live=shard.live(job), preview=progress.preview, index=progress.preview_index)
            for subscription in listeners:
                subscription.put(step)

    def _overflow(self, number: int) -> None:
        """Make the shard's subscribers resume: they may have missed changes."""
        for customer_id, listeners in self._subscriptions.items():
            if shard_of(customer_id, len(self._shards)) == number:
                for subscription in listeners:
                    subscription.overflow()

    def _shard(self, customer_id: str) -> "_Shard":
        return self._shards[shard_of(customer_id, len(self._shards))]


class _Shard:
    """The cache of one tracker's jobs and changes."""

    def __init__(self, keep_finished: int, keep_changes: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keep_finished = keep_finished
        self._keep_changes = keep_changes
        self.heard_at = float("-inf")
        self.outage: str | None = None
        """Why uploads cannot be accepted, by what the tracker said, or what became of the call."""
        self.known = asyncio.Event()
        """Set once the first answer is here."""
        self.seq = 0
        self.unfinished: dict[str, ProfilePhotoJob] = {}
        self.finished: OrderedDict[str, ProfilePhotoJob] = OrderedDict()
        self.progress: dict[str, GenerationProgress] = {}
        self.positions: dict[str, int] = {}
        self.forecast = Forecast()
        self.forecast_at = float("-inf")
        self.reports: tuple[ReplicaReport, ...] = ()
        """Of all replicas, as this tracker has them."""
        self._changes: dict[str, deque[LoggedChange]] = {}
        """Kept changes by customer."""
        self._change_order: deque[str] = deque()
        """The customers of the kept changes, oldest first."""
        self._complete_after = 0
        """Every change with a higher number is kept."""

    def apply(self, batch: FeedBatch) -> list[str]:
        """Apply a batch; returns the ids of the jobs that changed."""
        if not self.known.is_set():
            self._complete_after = batch.changes[0].event.seq - 1 if batch.changes else batch.cursor.seq
        changed = [job.job_id for job in batch.snapshot or () if self.put(job)]
        for change in batch.changes:
            self._keep(change)
            if change.job is None:
                self._erase(change.event)
                changed.append(change.event.job_id)
            elif self.put(change.job):
                changed.append(change.event.job_id)
        self.progress.update(
            (job_id, progress) for job_id, progress in batch.progress.items() if job_id in self.unfinished
        )
        if batch.forecast is not None:
            self.forecast, self.forecast_at = batch.forecast, self._clock()
            self.positions = {job_id: place for place, job_id in enumerate(batch.forecast.order, start=1)}
        if batch.reports is not None:
            self.reports = batch.reports
        self.seq = max(self.seq, batch.cursor.seq)
        while len(self.finished) > self._keep_finished:
            self.finished.popitem(last=False)
        self.known.set()
        return changed

    def reset(self) -> None:
        """Changes may have been missed: what was kept of them is no longer complete, and jobs may have ended
        of which no change will tell any more."""
        self.unfinished.clear()
        self.finished.clear()
        self.progress.clear()
        self._changes.clear()
        self._change_order.clear()
        self.known.clear()

    def live(self, job: ProfilePhotoJob) -> LiveJob:
        """Add to the job what is known of it beside the record."""
        position = self.positions.get(job.job_id) if job.status is ProcessingStatus.PENDING else None
        return LiveJob(
            job=job,
            progress=self.progress.get(job.job_id),
            queue_position=position,
            eta_seconds=self.eta(job),
        )

    def to_event(self, change: LoggedChange) -> Changed | Erased | None:
        """Return the change as a stream event; `None` for an earlier one of a job that was erased since."""
        event, job = change.event, change.job
        if event.kind is EventKind.ERASED:
            return Erased(seq=event.seq, customer_id=event.customer_id, job_id=event.job_id)
        if job is None:
            return None
        is_current = self.unfinished.get(job.job_id) == job
        return Changed(seq=event.seq, live=self.live(job) if is_current else LiveJob(job=job))

    def recent_changes(self, customer_id: str, after: int) -> Sequence[LoggedChange] | None:
        if not self._complete_after <= after <= self.seq:
            return None
        return [change for change in self._changes.get(customer_id, ()) if change.event.seq > after]

    def _keep(self, change: LoggedChange) -> None:
        customer_id = change.event.customer_id
        self._changes.setdefault(customer_id, deque()).append(change)
        self._change_order.append(customer_id)
        if len(self._change_order) > self._keep_changes:
            oldest = self._change_order.popleft()
            kept = self._changes[oldest]
            self._complete_after = max(self._complete_after, kept.popleft().event.seq)
            if not kept:
                del self._changes[oldest]

    def put(self, job: ProfilePhotoJob) -> bool:
        """Keep the job unless a newer value is known; returns whether it was kept."""
        known = self.unfinished.get(job.job_id) or self.finished.get(job.job_id)
        if known is not None and known.seq >= job.seq:
            return False
        if job.status.is_terminal:
            self.unfinished.pop(job.job_id, None)
            self.progress.pop(job.job_id, None)
            self.finished[job.job_id] = job
        else:
            self.unfinished[job.job_id] = job
            if job.status is ProcessingStatus.PENDING:
                self.progress.pop(job.job_id, None)
        return True

    def drop(self, job_id: str) -> None:
        self.unfinished.pop(job_id, None)
        self.finished.pop(job_id, None)
        self.progress.pop(job_id, None)

    def eta(self, job: ProfilePhotoJob) -> float | None:
        """Return the forecast seconds until the job is done, less those that have passed since.

        A waiting job that was not forecast by itself stands at the line's end, or near it. Nothing is taken
        off there: a busy tracker's forecast is new, and that of an idle one holds for whoever comes.
        """
        if job.status.is_terminal:
            return None
        seconds = self.forecast.seconds.get(job.job_id)
        if seconds is None:
            estimate = self.forecast.estimated_wait_seconds
            return None if estimate is None else round(estimate, 1)
        return round(max(0.0, seconds - (self._clock() - self.forecast_at)), 1)

    def _erase(self, event: JobEvent) -> None:
        """Drop what is known of an erased job, as the database does."""
        self.drop(event.job_id)
        kept = self._changes.get(event.customer_id, deque())
        for place, change in enumerate(kept):
            if change.event.job_id == event.job_id:
                kept[place] = replace(change, job=None)
