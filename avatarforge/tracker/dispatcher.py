"""The dispatcher: gives waiting jobs to free slots, follows their generations, and records how they end."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial

import structlog

from avatarforge.domain.errors import AvatarForgeError, Overtaken
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationFinished, GenerationProgress
from avatarforge.domain.jobs import JobError, ProfilePhotoJob, StoredImage
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry import metrics, traces
from avatarforge.telemetry.figures import Figures
from avatarforge.tracker.attempts import LOST, AttemptEnd, follow, identity_of
from avatarforge.tracker.backends import Backend, Backends, Remote
from avatarforge.tracker.board import Board, Gone
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.committer import Committer
from avatarforge.tracker.line import WaitingLine
from avatarforge.tracker.own import Own
from avatarforge.tracker.pace import Pace
from avatarforge.tracker.replicas import Replicas, Reservation

log = structlog.get_logger(__name__)


class Dispatcher:
    """Holds one slot of each backend at a time while jobs wait for it, and lets the job whose turn it is
    have it."""

    HOLD = 2.0
    """Seconds that a reserved slot is held while its job's start is committed. A slot that is held by a
    tracker that dies is lost to its replica for a while, so none is held through an outage."""
    RETRY_PAUSE = 10.0
    """Seconds that a job waits after a worker has given it back, doubled with each time: the same worker,
    free at once, would take it again."""
    RECHECK = 0.25
    """Seconds until a backend that may have none of the waiting jobs is thought of again, and a job that a
    stopping worker has given back."""
    RECHECK_EACH = 2e-5
    """Seconds that are added for each waiting job: every one of them is looked at, which takes a few
    microseconds, and a long line must not keep the event loop busy with it."""
    BACKENDS_OWN = frozenset({"model_unusable", "remote_refused"})
    """Codes of errors that lie with the backend, so that the other one may do better."""
    MOST_MESSAGE = 1000
    """Characters of an error's message that are kept."""

    def __init__(
        self,
        board: Board,
        replicas: Replicas,
        settings: TrackerSettings,
        *,
        remote: Remote | None = None,
        own: Own,
        on_progress: Callable[[str, GenerationProgress], None],
        on_unpublished: Callable[[StoredImage], None],
        figures: Figures | None = None,
        local_is_empty: Callable[[], bool] = lambda: False,
        is_held: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime],
    ) -> None:
        """Nothing is dispatched while it `is_held`. `on_unpublished` hears of avatars whose job had ended
        before they were made; `local_is_empty` tells whether none of our own replicas has a model, so that
        jobs wait."""
        self._board = board
        self._settings = settings
        self._own = own
        self._on_progress = on_progress
        self._on_unpublished = on_unpublished
        self._is_held = is_held
        self._now = now
        self._line = WaitingLine()
        self._pace = Pace()
        self._backends = Backends(
            replicas, remote, lambda: len(self._line), steady, local_is_empty=local_is_empty
        )
        self._generations: dict[str, asyncio.Task[AttemptEnd]] = {}
        self._makers: dict[str, str] = {}
        self._figures = figures or Figures()
        self._watch()

    def start(self) -> None:
        """Begin to dispatch."""
        for backend in self._backends.all:
            self._own(self._dispatch_forever(backend), f"dispatcher of {backend.name}")

    def enqueue(self, job: ProfilePhotoJob) -> None:
        """Let the job wait for its turn, unless it has moved on."""
        current = self._board.get(job.job_id)
        if current is not None and current.status is ProcessingStatus.PENDING:
            is_first = not self._line
            self._line.add(current)
            for backend in self._backends.all:
                if is_first or self._backends.takes(backend, current):
                    backend.news.set()

    def drop(self, job_id: str) -> None:
        """The job has ended: it leaves the line, and its generation stops at the next step."""
        self._line.remove(job_id)
        self._backends.forget(job_id)
        if (generation := self._generations.get(job_id)) is not None:
            generation.cancel()

    def order(self, most: int) -> tuple[str, ...]:
        """Ids of the first waiting jobs, next one first."""
        return self._line.in_order(most)

    @property
    def local(self) -> Backend:
        """Our own replicas."""
        return self._backends.all[0]

    @property
    def waiting(self) -> int:
        """How many jobs stand in line."""
        return len(self._line)

    @property
    def running(self) -> dict[str, str]:
        """Ids of the jobs that a replica has, each with the backend's name, oldest dispatch first."""
        return dict(self._makers)

    @property
    def figures(self) -> tuple[float | None, int]:
        """Seconds from one finished job to the next, and how many are being generated."""
        return self._pace.interval, len(self._generations)

    def _watch(self) -> None:
        watch = self._figures.watch
        watch(metrics.BACKLOG_JOBS, lambda: len(self._line))
        for backend in self._backends.all:
            backend.watch(self._figures)

    # --- slots ----------------------------------------------------------------------------------------

    async def _dispatch_forever(self, backend: Backend) -> None:
        while True:
            await self._until_wanted(backend)
            reserved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._own(self._attempt(backend, reserved), "attempt")
            try:
                await reserved
            except Exception as error:
                # The edge of a reservation: jobs still wait, so it is tried again.
                log.error("no slot could be reserved", backend=backend.name, exc_info=error)
                await asyncio.sleep(Committer.LONGEST_PAUSE)

    async def _until_wanted(self, backend: Backend) -> None:
        """Wait for a job that the backend may have. What it may have changes with time, too."""
        fits = partial(self._backends.takes, backend)
        while self._is_held() or self._backends.is_closed(backend) or not self._line.has(fits):
            backend.news.clear()
            pause = self.RECHECK + self.RECHECK_EACH * len(self._line)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self._line else None):
                    await backend.news.wait()

    async def _attempt(self, backend: Backend, reserved: "asyncio.Future[None]") -> None:
        """Wait for a slot, then let the job whose turn it is have it. `reserved` ends the waiting."""
        job: ProfilePhotoJob | None = None
        try:
            async with backend.slot() as reservation:
                if not self._is_held():
                    job = self._line.pop(partial(self._backends.takes, backend))
                reserved.set_result(None)
                if job is None:
                    return
                starting = asyncio.create_task(self._start_of(job), name="start of a job")
                done, _ = await asyncio.wait({starting}, timeout=self.HOLD)
                if done:
                    await self._generate(backend, starting.result(), reservation)
                    return
            # The slot is free again; the job has to wait for another.
            self.enqueue(await self._take_back(await starting, lost=False))
        except Gone as gone:
            self._backends.forget(gone.job_id)
        except Overtaken:
            log.info("attempt dropped: the shard is another tracker's now")
        except Exception as error:
            if not reserved.done():
                reserved.set_exception(error)
            elif job is not None:
                await self._give_up(job.job_id, error)
        finally:
            if not reserved.done():
                reserved.set_result(None)

    async def _start_of(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        return await self._board.change(
            job.job_id, lambda current: current.started(self._now()), EventKind.STARTED
        )

    # --- generations ------------------------------------------------------------------------------------

    async def _generate(self, backend: Backend, job: ProfilePhotoJob, reservation: Reservation) -> None:
        if self._board.get(job.job_id) != job:
            return  # Cancelled or erased right after its start.
        if job.attempt == 1 and job.started_at is not None:
            waited = job.created_at.timestamp(), job.started_at.timestamp()
            traces.record("wait", job.parameters.traceparent, *waited, identity_of(job))
        self._pace.started(steady())
        backend.started()
        generation = asyncio.create_task(
            follow(
                job,
                reservation,
                lease_seconds=self._settings.lease_seconds,
                on_progress=lambda progress: self._on_progress(job.job_id, progress),
            ),
            name="generation",
        )
        self._generations[job.job_id] = generation
        self._makers[job.job_id] = backend.name
        finished = False
        try:
            await asyncio.wait({generation})
            finished = not generation.cancelled() and isinstance(generation.result(), GenerationFinished)
        finally:
            del self._generations[job.job_id], self._makers[job.job_id]
            backend.ended(finished=finished)
            generation.cancel()
            await asyncio.wait({generation})
        self._figures.count(metrics.ATTEMPTS_ENDED, backend.name, _outcome_of(generation))
        if generation.cancelled():
            self._pace.stopped(len(self._generations))
            raise Gone(job.job_id)
        await self._conclude(backend, job, generation.result())

    async def _conclude(self, backend: Backend, job: ProfilePhotoJob, end: AttemptEnd) -> None:
        """Record how the attempt ended."""
        if isinstance(end, GenerationFinished):
            self._pace.finished(steady(), len(self._generations))
            await self._publish(job, end)
            return
        self._pace.stopped(len(self._generations))
        if not end.is_held_against_job:
            # Not at once: for a moment Serve may still choose the replica that is being stopped.
            self._own(self._retry(await self._take_back(job, lost=False), self.RECHECK), "retry")
            return
        if end.away_seconds is not None:
            backend.leave_alone(end.away_seconds)
        elsewhere = self._backends.failed(backend, job)
        is_its_own = end.error.code in self.BACKENDS_OWN and self._backends.cannot(backend, job)
        if not (end.retryable or is_its_own):
            await self._fail(job.job_id, end.error)
        elif end.away_seconds is not None:
            self.enqueue(await self._take_back(job, lost=False))
        elif job.losses + 1 >= self._settings.max_attempts:
            message = f"{end.error.message} {job.losses + 1} attempts were lost."
            await self._fail(job.job_id, JobError(code=end.error.code, message=message))
        else:
            at_once = elsewhere or is_its_own or end.error.code in LOST
            pause = 0.0 if at_once else self.RETRY_PAUSE * 2**job.losses
            self._own(self._retry(await self._take_back(job, lost=True), pause), "retry")

    async def _publish(self, job: ProfilePhotoJob, end: GenerationFinished) -> None:
        try:
            with traces.span("publish", job.parameters.traceparent, attributes=identity_of(job)):
                await self._board.change(
                    job.job_id, lambda current: current.done(end.outcome, self._now()), EventKind.DONE
                )
        except Gone:
            self._on_unpublished(end.outcome.avatar)
            raise

    async def _retry(self, job: ProfilePhotoJob, pause: float) -> None:
        await asyncio.sleep(pause)
        self.enqueue(job)

    async def _give_up(self, job_id: str, error: Exception) -> None:
        """The edge of a job: the database has refused one of its moves, and it must end all the same."""
        log.error("job broke", job_id=job_id, exc_info=error)
        message = f"The job could not go on ({type(error).__name__})."
        try:
            await self._fail(job_id, JobError(code=AvatarForgeError.code, message=message))
        except Gone:
            return

    async def _take_back(self, job: ProfilePhotoJob, *, lost: bool) -> ProfilePhotoJob:
        return await self._board.change(
            job.job_id, lambda current: current.requeued(lost=lost), EventKind.REQUEUED
        )

    async def _fail(self, job_id: str, error: JobError) -> None:
        short = JobError(code=error.code, message=error.message[: self.MOST_MESSAGE])
        await self._board.change(job_id, lambda current: current.failed(short, self._now()), EventKind.FAILED)


def _outcome_of(generation: "asyncio.Task[AttemptEnd]") -> str:
    """How an attempt ended, in a word."""
    if generation.cancelled():
        return "cancelled"
    end = generation.result()
    return "finished" if isinstance(end, GenerationFinished) else end.error.code
