"""An ingress replica's own view of live jobs, fed by the trackers: reads and waits cost no actor call."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.tracker.feed import FeedBatch, FeedCursor

log = structlog.get_logger(__name__)


class FeedSource(Protocol):
    """Where news come from; `tracker.client.JobTrackers` keeps it."""

    @property
    def shards(self) -> int: ...

    async def feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveJob:
    """A job with what only lives in memory."""

    job: ProfilePhotoJob
    progress: GenerationProgress | None = None
    queue_position: int | None = None
    """1 is next; `None` when it does not wait or stands beyond the told part of the line."""
    eta_seconds: float | None = None
    """Seconds until it is done, by the pace of the last jobs; `None` before one has finished."""


class LiveJobs:
    """Unfinished jobs, and those that finished in the last minutes, as the trackers told them.

    A read may be some milliseconds behind a change made through another replica.
    """

    FEED_WAIT = 2.0
    """Seconds that a tracker may hold an answer for want of news."""
    PAUSE = 0.01
    """Seconds from one question to the next, at least: under load one answer tells of many changes."""
    RETRY = 0.3
    """Seconds until a tracker that is away is asked again."""
    KEEP_FINISHED = 10_000
    """Finished jobs that are kept, oldest out first; older ones are in the database."""

    def __init__(self, source: FeedSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._shards = [_Shard() for _ in range(source.shards)]
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

    @property
    def lag(self) -> float:
        """Seconds since the most silent tracker answered; infinite before its first answer."""
        now = self._clock()
        return max(now - shard.heard_at for shard in self._shards)

    def get(self, customer_id: str, job_id: str) -> LiveJob | None:
        """The job as told last; `None` when the view does not know it and the database has to be asked."""
        shard = self._shard(customer_id)
        job = shard.unfinished.get(job_id) or shard.finished.get(job_id)
        if job is None or job.customer_id != customer_id:
            return None
        position = shard.positions.get(job_id) if job.status is ProcessingStatus.PENDING else None
        return LiveJob(
            job=job,
            progress=shard.progress.get(job_id),
            queue_position=position,
            eta_seconds=shard.eta(job, position),
        )

    def admit(self, job: ProfilePhotoJob) -> None:
        """A job that this replica has just submitted: readable before the feed tells of it."""
        self._shard(job.customer_id).take(job)

    async def terminal(self, customer_id: str, job_id: str, seconds: float) -> LiveJob | None:
        """The job once it is terminal, or as it stands after `seconds`.

        `None` when the view does not know it.
        """
        deadline = self._clock() + seconds
        while True:
            live = self.get(customer_id, job_id)
            left = deadline - self._clock()
            if live is None or live.job.status.is_terminal or left <= 0:
                return live
            await self._changed(job_id, left)

    async def _changed(self, job_id: str, seconds: float) -> None:
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

    # --- following ------------------------------------------------------------------------------------

    async def _follow(self, number: int) -> None:
        shard, cursor = self._shards[number], FeedCursor()
        while True:
            asked_at = self._clock()
            try:
                batch = await self._source.feed(number, cursor, self.FEED_WAIT)
                changed = shard.apply(batch, self.KEEP_FINISHED)
            except TrackerUnavailable as error:
                log.warning("tracker is away", shard=number, reason=error.reason)
                await asyncio.sleep(self.RETRY)
                continue
            except Exception:
                # The edge of a feed: what it cannot take in, it asks for anew, as one that knows nothing.
                log.exception("feed broke", shard=number)
                cursor = FeedCursor()
                await asyncio.sleep(self.RETRY)
                continue
            cursor = batch.cursor
            shard.heard_at = self._clock()
            for job_id in changed:
                for future in self._waiters.pop(job_id, ()):
                    if not future.done():
                        future.set_result(None)
            await asyncio.sleep(max(0.0, asked_at + self.PAUSE - self._clock()))

    def _shard(self, customer_id: str) -> "_Shard":
        return self._shards[shard_of(customer_id, len(self._shards))]


class _Shard:
    """What one tracker has told."""

    def __init__(self) -> None:
        self.heard_at = float("-inf")
        self.unfinished: dict[str, ProfilePhotoJob] = {}
        self.finished: OrderedDict[str, ProfilePhotoJob] = OrderedDict()
        self.progress: dict[str, GenerationProgress] = {}
        self.positions: dict[str, int] = {}
        self.seconds_per_job: float | None = None
        self.running = 0

    def apply(self, batch: FeedBatch, keep_finished: int) -> list[str]:
        """Take the news in; returns the ids of the jobs that changed."""
        changed = [job.job_id for job in batch.snapshot or () if self.take(job)]
        for change in batch.changes:
            if change.job is None:
                self._forget(change.event.job_id)
                changed.append(change.event.job_id)
            elif self.take(change.job):
                changed.append(change.event.job_id)
        self.progress.update(
            (job_id, news) for job_id, news in batch.progress.items() if job_id in self.unfinished
        )
        if batch.order is not None:
            self.positions = {job_id: place for place, job_id in enumerate(batch.order, start=1)}
        self.seconds_per_job, self.running = batch.seconds_per_job, batch.running
        while len(self.finished) > keep_finished:
            self.finished.popitem(last=False)
        return changed

    def take(self, job: ProfilePhotoJob) -> bool:
        """Keep the job's value unless a newer one is known."""
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

    def eta(self, job: ProfilePhotoJob, position: int | None) -> float | None:
        """Seconds by the pace of the last jobs: those that run and those that stand before it come first."""
        if self.seconds_per_job is None or job.status.is_terminal:
            return None
        if job.status is ProcessingStatus.PENDING:
            if position is None:
                return None
            return round(self.seconds_per_job * (self.running + position), 1)
        progress = self.progress.get(job.job_id)
        if progress is None or progress.total_steps == 0:
            return round(self.seconds_per_job * max(1, self.running), 1)
        return round(self.seconds_per_job * (1 - progress.step / progress.total_steps), 1)

    def _forget(self, job_id: str) -> None:
        self.unfinished.pop(job_id, None)
        self.finished.pop(job_id, None)
        self.progress.pop(job_id, None)
