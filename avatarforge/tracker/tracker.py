"""The JobTracker of one shard, without Ray: it accepts, orders, dispatches, records and tells."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Protocol

import structlog

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable, Overtaken, TrackerUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationFinished, GenerationProgress
from avatarforge.domain.jobs import JobError, ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.attempts import LOST, AttemptEnd, follow
from avatarforge.tracker.committer import ChangeLog, Committer
from avatarforge.tracker.feed import Feed, FeedBatch, FeedCursor
from avatarforge.tracker.line import WaitingLine
from avatarforge.tracker.pace import Pace
from avatarforge.tracker.replicas import Replicas, Reservation

log = structlog.get_logger(__name__)


class TrackerRecords(ChangeLog, Protocol):
    """What a tracker needs of the database; `persistence.jobs.JobRecords` keeps it."""

    def unfinished(self, shard: int) -> list[ProfilePhotoJob]: ...

    def job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None: ...

    def latest_seq(self, shard: int) -> int: ...

    def events_after(self, shard: int, seq: int, limit: int) -> list[LoggedChange]: ...


class JobTracker:
    """Live state of a shard's unfinished jobs. All of it can be rebuilt from the database.

    A job's moves follow one another: each is committed before the next begins, and only what is committed
    is told.
    """

    ORDER_SHOWN = 1000
    """Waiting jobs whose position is told."""
    PAGE = 1000
    """Events read from the database at once."""
    HOLD = 2.0
    """Seconds that a reserved slot is held while its job's start is committed. A slot that is held by a
    tracker that dies is lost to its replica, so none is held through an outage."""
    RETRY_PAUSE = 10.0
    """Seconds that a job waits after a worker has given it back, doubled with each time: the same worker,
    free at once, would take it again."""
    MOST_MESSAGE = 1000
    """Characters of an error's message that are kept."""

    def __init__(
        self,
        shard: int,
        records: TrackerRecords,
        replicas: Replicas,
        settings: TrackerSettings,
        *,
        on_broken: Callable[[Exception], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_broken` hears of an error after which this tracker can do nothing more: it must be replaced
        by a new one, which recovers from the database."""
        self._shard = shard
        self._records = records
        self._replicas = replicas
        self._settings = settings
        self._on_broken = on_broken
        self._now = now
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._line = WaitingLine()
        self._pace = Pace()
        self._running = 0
        self._work = asyncio.Event()
        self._ready = asyncio.Event()
        self._accepting: dict[str, asyncio.Task[ProfilePhotoJob]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._feed: Feed | None = None
        self._committer = Committer(
            records,
            shard,
            batch=settings.commit_batch,
            accept_timeout=settings.accept_timeout,
            on_disowned=self._erase,
            on_broken=on_broken,
        )

    # --- starting and stopping ----------------------------------------------------------------------

    async def start(self) -> None:
        """Take the shard over: claim its epoch, load what is unfinished, and begin to dispatch."""
        epoch = await self._committer.start()
        jobs, seq = await self._recovered()
        self._feed = Feed(
            f"{epoch}-{secrets.token_hex(4)}",
            seq,
            recent=self._settings.recent_events,
            load_changes=self._load_changes,
            jobs=lambda: tuple(self._jobs.values()),
            order=lambda: self._line.in_order(self.ORDER_SHOWN),
            figures=lambda: (self._pace.interval, self._running),
        )
        self._jobs = {job.job_id: job for job in jobs}
        interrupted = [job for job in jobs if job.status is ProcessingStatus.PROCESSING]
        await asyncio.gather(*(self._take_back(job, lost=False) for job in interrupted))
        for job in self._jobs.values():
            self._line.add(job)
        self._ready.set()
        self._own(self._dispatch_forever(), "dispatcher")
        if self._line:
            self._work.set()
        log.info(
            "tracker ready", shard=self._shard, epoch=epoch, jobs=len(jobs), interrupted=len(interrupted)
        )

    async def stop(self) -> None:
        """Stop dispatching and finish the commit under way. Unfinished jobs go on with the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._committer.stop()

    async def _recovered(self) -> tuple[list[ProfilePhotoJob], int]:
        """Unfinished jobs and the last `seq`; asked until the database answers."""
        while True:
            try:
                jobs = await asyncio.to_thread(self._records.unfinished, self._shard)
                return jobs, await asyncio.to_thread(self._records.latest_seq, self._shard)
            except DatabaseUnavailable as error:
                log.warning("recovery waits for the database", shard=self._shard, reason=error.reason)
                await asyncio.sleep(Committer.FIRST_PAUSE)

    # --- what callers ask -----------------------------------------------------------------------------

    async def submit(self, jobs: Sequence[ProfilePhotoJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        """Accept new jobs. Each is committed when its entry of the answer is a job; else it was not kept.

        Submitting a job again (its first answer was lost) returns it as it stands.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.accept_timeout)
        except TimeoutError:
            error = self._committer.outage or TrackerUnavailable("it is still starting")
            return [error] * len(jobs)
        answers = await asyncio.gather(*(self._accept(job) for job in jobs), return_exceptions=True)
        return [_told(answer) for answer in answers]

    async def feed(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News for an ingress replica; see `Feed.read`."""
        await self._ready.wait()
        assert self._feed is not None, "set before ready"
        return await self._feed.read(cursor, wait)

    async def _accept(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        known = self._jobs.get(job.job_id)
        if known is not None:
            return known
        accepting = self._accepting.get(job.job_id)
        if accepting is None:
            accepting = asyncio.create_task(self._accept_new(job), name="accept")
            self._accepting[job.job_id] = accepting
            accepting.add_done_callback(lambda _: self._accepting.pop(job.job_id))
        return await asyncio.shield(accepting)

    async def _accept_new(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        change = JobChange(job=job, event=job.event(EventKind.SUBMITTED, job.created_at))
        committed = await self._committer.accept(change)
        self._tell(committed)
        self._stand_in_line(committed.job)
        return committed.job

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """The job as it stands, unfinished or not: how a lost answer to `submit` is read back."""
        await self._ready.wait()
        return self._jobs.get(job_id) or await asyncio.to_thread(self._records.job, customer_id, job_id)

    # --- dispatch -----------------------------------------------------------------------------------

    async def _dispatch_forever(self) -> None:
        """While jobs wait, hold one slot at a time and let the job whose turn it is have it."""
        while True:
            await self._work.wait()
            reserved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._own(self._attempt(reserved), "attempt")
            try:
                await reserved
            except Exception as error:
                # The edge of a reservation: jobs still wait, so it is tried again.
                log.error("no slot could be reserved", shard=self._shard, exc_info=error)
                await asyncio.sleep(Committer.LONGEST_PAUSE)
            if not self._line:
                self._work.clear()

    async def _attempt(self, reserved: "asyncio.Future[None]") -> None:
        """Wait for a slot, then let the job whose turn it is have it. `reserved` ends the waiting."""
        job: ProfilePhotoJob | None = None
        starting: asyncio.Task[ProfilePhotoJob] | None = None
        try:
            async with self._replicas.reserve() as reservation:
                job = self._line.pop()
                reserved.set_result(None)
                if job is None:
                    return
                starting = asyncio.create_task(self._start_of(job), name="start of a job")
                done, _ = await asyncio.wait({starting}, timeout=self.HOLD)
                if done:
                    await self._generate(starting.result(), reservation)
                    return
            # The slot is free again; the job has to wait for another.
            self._stand_in_line(await self._take_back(await starting, lost=False))
        except Overtaken:
            log.info("attempt dropped: the shard is another tracker's now", shard=self._shard)
        except Exception as error:
            if not reserved.done():
                reserved.set_exception(error)
            elif job is not None:
                await self._give_up(self._jobs.get(job.job_id, job), error)
        finally:
            if not reserved.done():
                reserved.set_result(None)

    async def _start_of(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        return await self._move(job.started(self._now()), EventKind.STARTED)

    async def _generate(self, job: ProfilePhotoJob, reservation: Reservation) -> None:
        self._running += 1
        self._pace.started(asyncio.get_running_loop().time())
        try:
            end = await follow(
                job,
                reservation,
                lease_seconds=self._settings.lease_seconds,
                on_progress=lambda progress: self._progressed(job.job_id, progress),
            )
        finally:
            self._running -= 1
        await self._conclude(job, end)

    async def _conclude(self, job: ProfilePhotoJob, end: AttemptEnd) -> None:
        """Record how the attempt ended."""
        if isinstance(end, GenerationFinished):
            self._pace.finished(asyncio.get_running_loop().time(), self._running)
            await self._move(job.done(end.outcome, self._now()), EventKind.DONE)
            return
        self._pace.stopped(self._running)
        if not end.retryable:
            await self._fail(job, end.error)
        elif job.losses + 1 >= self._settings.max_attempts:
            message = f"{end.error.message} {job.losses + 1} attempts were lost."
            await self._fail(job, JobError(code=end.error.code, message=message))
        else:
            pause = 0.0 if end.error.code in LOST else self.RETRY_PAUSE * 2**job.losses
            self._own(self._retry(await self._take_back(job, lost=True), pause), "retry")

    async def _retry(self, job: ProfilePhotoJob, pause: float) -> None:
        await asyncio.sleep(pause)
        self._stand_in_line(job)

    async def _give_up(self, job: ProfilePhotoJob, error: Exception) -> None:
        """The edge of a job: the database has refused one of its moves, and it must end all the same."""
        log.error("job broke", job_id=job.job_id, attempt=job.attempt, exc_info=error)
        message = f"The job could not go on ({type(error).__name__})."
        await self._fail(job, JobError(code=AvatarForgeError.code, message=message))

    async def _take_back(self, job: ProfilePhotoJob, *, lost: bool) -> ProfilePhotoJob:
        return await self._move(job.requeued(lost=lost), EventKind.REQUEUED)

    async def _fail(self, job: ProfilePhotoJob, error: JobError) -> None:
        short = JobError(code=error.code, message=error.message[: self.MOST_MESSAGE])
        await self._move(job.failed(short, self._now()), EventKind.FAILED)

    # --- state ----------------------------------------------------------------------------------------

    async def _move(self, job: ProfilePhotoJob, kind: EventKind) -> ProfilePhotoJob:
        """Commit a job's new value, then tell of it."""
        committed = await self._committer.commit(JobChange(job=job, event=job.event(kind, self._now())))
        self._tell(committed)
        return committed.job

    def _tell(self, change: JobChange) -> None:
        job = change.job
        if job.status.is_terminal or change.is_erasure:
            self._jobs.pop(job.job_id, None)
            self._line.remove(job.job_id)
        else:
            self._jobs[job.job_id] = job
        assert self._feed is not None, "nothing is committed before the tracker is ready"
        self._feed.changed(change)

    def _stand_in_line(self, job: ProfilePhotoJob) -> None:
        self._line.add(job)
        self._work.set()

    def _progressed(self, job_id: str, progress: GenerationProgress) -> None:
        assert self._feed is not None, "nothing runs before the tracker is ready"
        self._feed.progressed(job_id, progress)

    async def _load_changes(self, seq: int) -> list[LoggedChange]:
        return await asyncio.to_thread(self._records.events_after, self._shard, seq, self.PAGE)

    # --- what went wrong --------------------------------------------------------------------------------

    def _erase(self, change: JobChange) -> None:
        """A submission turned out to be committed after its caller was told that it was not."""
        self._own(self._forget(change.job), "erase")

    async def _forget(self, job: ProfilePhotoJob) -> None:
        await self._move(job.erased(), EventKind.ERASED)

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run beside the rest; `stop` ends it. Nobody awaits it: what it raises breaks the tracker."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            log.error("task broke", task=task.get_name(), shard=self._shard, exc_info=error)
            self._on_broken(error)


def _told(answer: ProfilePhotoJob | BaseException) -> ProfilePhotoJob | AvatarForgeError:
    """What the caller hears: anything but a kept job is an error of our family."""
    if isinstance(answer, ProfilePhotoJob | AvatarForgeError):
        return answer
    log.error("submission broke", exc_info=answer)
    return TrackerUnavailable(f"a submission broke ({type(answer).__name__})")
