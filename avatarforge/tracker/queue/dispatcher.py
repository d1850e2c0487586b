"""The dispatcher: gives waiting jobs to free slots, follows their generations, and records how they end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from avatarforge.background import BackgroundTasks, wait_for_event
from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import AvatarForgeError, StaleEpoch
from avatarforge.domain.generations import GenerationFinished, GenerationProgress
from avatarforge.domain.jobs import AvatarImage, JobError, ProfilePhotoJob, StoredImage
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry import metrics, traces
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.availability import DatabaseOutage
from avatarforge.tracker.jobs.job_table import JobFinished, JobTable
from avatarforge.tracker.ports import Ports, Reservation
from avatarforge.tracker.queue.attempts import (
    ATTEMPT_FAILURES,
    LOST_WORKER_CODES,
    AttemptEnd,
    attempt_identity,
    run_attempt,
)
from avatarforge.tracker.queue.backends import Backend, Backends
from avatarforge.tracker.queue.fair_queue import FairQueue
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry

log = structlog.get_logger(__name__)

ProgressListener = Callable[[str, GenerationProgress], None]
"""Takes a job's id and its newest step."""


@dataclass(kw_only=True, slots=True)
class RunningJob:
    """A job that a replica has."""

    job: ProfilePhotoJob
    backend: str
    progress: GenerationProgress | None = None


class Dispatcher:
    """Holds one slot of each backend at a time while jobs wait for it, and gives it to the job whose turn it
    is."""

    HOLD_SECONDS = 2.0
    """Seconds that a reserved slot is held while its job's start is committed. A slot that is held by a
    tracker that dies is lost to its replica for a while, so none is held through an outage."""
    RETRY_DELAY_SECONDS = 10.0
    """Seconds that a job waits after a worker has given it back, doubled with each time: the same worker,
    free at once, would take it again."""
    RECHECK_SECONDS = 0.25
    """Seconds until a backend that may have none of the waiting jobs is thought of again, and a job that a
    stopping worker has given back, or one of an older release has not made."""
    RECHECK_SECONDS_PER_IMAGE = 2e-5
    """Seconds that are added for each image that is waited for: all waiting jobs, at most as many, are looked
    at, which takes a few microseconds each, and a long queue must not keep the event loop busy with it."""
    FAILED_RESERVATION_DELAY_SECONDS = 2.0
    BACKEND_ERROR_CODES = frozenset({"model_unusable", "remote_refused"})
    """Codes of errors that lie with the backend, so that the other one may do better."""
    MAX_MESSAGE_LENGTH = 1000
    """Characters of an error's message that are kept."""

    def __init__(
        self,
        ports: Ports,
        settings: TrackerSettings,
        job_table: JobTable,
        replica_registry: ReplicaRegistry,
        tasks: BackgroundTasks,
        outage: DatabaseOutage,
        on_unpublished: Callable[[StoredImage], None],
        registry: MetricsRegistry,
        now: Callable[[], datetime],
    ) -> None:
        """Nothing is dispatched during an outage. `on_unpublished` gets avatars whose job had ended before
        they were made."""
        self._job_table = job_table
        self._settings = settings
        self._tasks = tasks
        self._outage = outage
        self._on_unpublished = on_unpublished
        self._registry = registry
        self._now = now
        self.queue = FairQueue()
        self._backends = Backends(ports.replicas, ports.remote, self.queue, replica_registry)
        self.throughput = self._backends.throughput
        self._generations: dict[str, asyncio.Task[AttemptEnd]] = {}
        self.running_jobs: dict[str, RunningJob] = {}
        """By id, oldest dispatch first."""
        self._progress_listeners: list[ProgressListener] = []
        registry.register_gauge(metrics.BACKLOG_JOBS, self.queue.__len__)
        for backend in self._backends.all:
            backend.register_gauges(registry)
            for outcome in ("finished", "cancelled", *ATTEMPT_FAILURES):
                registry.declare(metrics.ATTEMPTS_ENDED, backend.name, outcome)

    def subscribe(self, listener: ProgressListener) -> None:
        """Call the listener with every step of a running job: live only, never stored."""
        self._progress_listeners.append(listener)

    def start(self) -> None:
        for backend in self._backends.all:
            self._tasks.spawn(self._dispatch(backend), f"dispatcher of {backend.name}")

    def on_change(self, change: JobChange) -> None:
        if change.is_submission:
            self.enqueue(change.job)
        elif change.is_erasure or change.job.status.is_terminal:
            self._drop(change.job.job_id)

    def enqueue(self, job: ProfilePhotoJob) -> None:
        """Let the job wait for its turn, unless it has moved on."""
        current = self._job_table.get(job.job_id)
        if current is not None and current.status is ProcessingStatus.PENDING:
            is_alone = self.queue.add(current)
            for backend in self._backends.all:
                if is_alone or self._backends.accepts(backend, current):
                    backend.wake.set()

    @property
    def local(self) -> Backend:
        """Our own replicas."""
        return self._backends.all[0]

    def _drop(self, job_id: str) -> None:
        """Take a job that has ended out of the queue, and stop its generation at the next step."""
        self.queue.remove(job_id)
        self._backends.forget(job_id)
        if (generation := self._generations.get(job_id)) is not None:
            generation.cancel()

    # --- slots ----------------------------------------------------------------------------------------

    async def _dispatch(self, backend: Backend) -> None:
        while True:
            await self._wait_for_job(backend)
            reserved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._attempt(backend, reserved), "attempt")
            try:
                await reserved
            except Exception as error:
                # The edge of a reservation: jobs still wait, so it is tried again.
                log.error("no slot could be reserved", backend=backend.name, exc_info=error)
                await asyncio.sleep(self.FAILED_RESERVATION_DELAY_SECONDS)

    async def _wait_for_job(self, backend: Backend) -> None:
        """Wait for a job that the backend may have. Which it may have changes with time, too."""
        fits = partial(self._backends.accepts, backend)
        while self._outage.is_active() or self._backends.is_closed(backend) or not self.queue.has(fits):
            backend.wake.clear()
            waited_for = self.queue.image_count
            pause = self.RECHECK_SECONDS + self.RECHECK_SECONDS_PER_IMAGE * waited_for
            await wait_for_event(backend.wake, pause if waited_for else None)

    async def _attempt(self, backend: Backend, reserved: "asyncio.Future[None]") -> None:
        """Wait for a slot, then give it to the job whose turn it is. `reserved` ends the waiting."""
        job: ProfilePhotoJob | None = None
        is_generated = False
        try:
            async with backend.slot() as reservation:
                if not self._outage.is_active():
                    job = self.queue.pop(partial(self._backends.accepts, backend))
                if job is not None:
                    # Before the next slot is asked for: whether one is depends on what this job makes.
                    backend.record_start(job)
                reserved.set_result(None)
                if job is None:
                    return
                starting = asyncio.create_task(
                    self._start_job(job, backend, reservation.replica_id), name="start of a job"
                )
                done, _ = await asyncio.wait({starting}, timeout=self.HOLD_SECONDS)
                if done:
                    is_generated = not starting.exception()
                    await self._generate(backend, starting.result(), reservation)
                    return
            # The slot is free again; the job has to wait for another.
            self.enqueue(await self._requeue(await starting, lost=False))
        except JobFinished as finished:
            self._backends.forget(finished.job_id)
        except StaleEpoch:
            log.info("attempt dropped: the shard is another tracker's now")
        except Exception as error:
            if not reserved.done():
                reserved.set_exception(error)
            elif job is not None:
                await self.give_up(job.job_id, error)
        finally:
            if job is not None and not is_generated:
                backend.record_end(job.job_id)
            if not reserved.done():
                reserved.set_result(None)

    async def _start_job(self, job: ProfilePhotoJob, backend: Backend, replica_id: str) -> ProfilePhotoJob:
        started = await self._job_table.update(
            job.job_id, lambda current: current.start(self._now()), EventKind.STARTED
        )
        log.info("job started", backend=backend.name, replica=replica_id, **_identity(started))
        return started

    # --- generations ------------------------------------------------------------------------------------

    async def _generate(self, backend: Backend, job: ProfilePhotoJob, reservation: Reservation) -> None:
        current = self._job_table.get(job.job_id)
        if current is None or current.attempt != job.attempt:
            backend.record_end(job.job_id)
            return  # Cancelled or erased right after its start.
        if job.attempt == 1 and job.started_at is not None:
            waited = job.created_at.timestamp(), job.started_at.timestamp()
            traces.record("wait", job.parameters.traceparent, *waited, attempt_identity(job))
        running = self.running_jobs[job.job_id] = RunningJob(job=job, backend=backend.name)
        generation = self._generations[job.job_id] = asyncio.create_task(
            run_attempt(
                job,
                reservation,
                lease_seconds=self._settings.lease_seconds,
                on_progress=partial(self._publish_progress, running),
                on_image=partial(self._publish_image, backend, job),
            ),
            name="generation",
        )
        has_image = False
        try:
            await asyncio.wait({generation})
            has_image = not generation.cancelled() and isinstance(generation.result(), GenerationFinished)
        finally:
            del self._generations[job.job_id], self.running_jobs[job.job_id]
            backend.record_end(job.job_id, has_image=has_image)
            generation.cancel()
            await asyncio.wait({generation})
        self._registry.count(metrics.ATTEMPTS_ENDED, backend.name, _outcome_label(generation))
        if generation.cancelled():
            raise JobFinished(job.job_id)
        await self._conclude(backend, job, generation.result())

    def _publish_progress(self, running: RunningJob, progress: GenerationProgress) -> None:
        running.progress = progress
        for listener in self._progress_listeners:
            listener(running.job.job_id, progress)

    async def _publish_image(self, backend: Backend, job: ProfilePhotoJob, image: AvatarImage) -> None:
        """Commit one of several images; the last one is committed with the job's end."""
        backend.record_image(job.job_id)
        try:
            published = await self._job_table.update(
                job.job_id, lambda current: current.publish(image, job.attempt), EventKind.IMAGE
            )
        except JobFinished:
            self._on_unpublished(image.stored)
            raise
        log.info("image published", index=image.index, **_identity(published))

    async def _conclude(self, backend: Backend, job: ProfilePhotoJob, end: AttemptEnd) -> None:
        if isinstance(end, GenerationFinished):
            if end.image is not None or job.parameters.variants == 1:
                await self._publish(job, end)
            else:
                log.warning("replica of an older release made one image only", **attempt_identity(job))
                self._on_unpublished(end.outcome.avatar)
                await self._requeue_soon(job)
            return
        if not end.counts_as_failure:
            await self._requeue_soon(job)
            return
        if end.away_seconds is not None:
            backend.back_off(end.away_seconds)
        elsewhere = self._backends.record_failure(backend, job)
        is_its_own = end.error.code in self.BACKEND_ERROR_CODES and self._backends.exclude(backend, job)
        if not (end.retryable or is_its_own):
            await self._fail(job.job_id, end.error)
        elif end.away_seconds is not None:
            self.enqueue(await self._requeue(job, lost=False))
        elif job.worker_losses + 1 >= self._settings.max_attempts:
            message = f"{end.error.message} {job.worker_losses + 1} attempts were lost."
            await self._fail(job.job_id, JobError(code=end.error.code, message=message))
        else:
            at_once = elsewhere or is_its_own or end.error.code in LOST_WORKER_CODES
            delay = 0.0 if at_once else self.RETRY_DELAY_SECONDS * 2**job.worker_losses
            self._tasks.spawn(self._enqueue_later(await self._requeue(job, lost=True), delay), "retry")

    async def _publish(self, job: ProfilePhotoJob, end: GenerationFinished) -> None:
        try:
            with traces.span("publish", job.parameters.traceparent, attributes=attempt_identity(job)):
                await self._job_table.update(
                    job.job_id,
                    lambda current: current.complete(end.outcome, self._now(), end.image),
                    EventKind.DONE,
                )
        except JobFinished:
            self._on_unpublished(end.outcome.avatar)
            raise

    async def _requeue_soon(self, job: ProfilePhotoJob) -> None:
        """Let another replica make the job. Not at once: for a moment Serve may still choose the same one."""
        requeued = await self._requeue(job, lost=False)
        self._tasks.spawn(self._enqueue_later(requeued, self.RECHECK_SECONDS), "retry")

    async def _enqueue_later(self, job: ProfilePhotoJob, delay: float) -> None:
        await asyncio.sleep(delay)
        self.enqueue(job)

    async def give_up(self, job_id: str, error: Exception) -> None:
        """Fail the job. The edge of a job: the database has refused one of its changes, and it must end."""
        log.error("job broke", job_id=job_id, exc_info=error)
        message = f"The job could not go on ({type(error).__name__})."
        try:
            await self._fail(job_id, JobError(code=AvatarForgeError.code, message=message))
        except JobFinished:
            return
        except StaleEpoch:
            raise
        except Exception as second:
            # It holds nothing up. The next tracker tries it again.
            log.error("job is left as it is: its end is refused too", job_id=job_id, exc_info=second)

    async def _requeue(self, job: ProfilePhotoJob, *, lost: bool) -> ProfilePhotoJob:
        return await self._job_table.update(
            job.job_id, lambda current: current.requeue(lost=lost), EventKind.REQUEUED
        )

    async def _fail(self, job_id: str, error: JobError) -> None:
        short = JobError(code=error.code, message=error.message[: self.MAX_MESSAGE_LENGTH])
        await self._job_table.update(
            job_id, lambda current: current.fail(short, self._now()), EventKind.FAILED
        )


def _identity(job: ProfilePhotoJob) -> dict[str, object]:
    """Return what names the job's last change in the log."""
    return {**attempt_identity(job), "seq": job.seq, **job.parameters.origin}


def _outcome_label(generation: "asyncio.Task[AttemptEnd]") -> str:
    if generation.cancelled():
        return "cancelled"
    end = generation.result()
    return "finished" if isinstance(end, GenerationFinished) else end.error.code
