"""The deadlines that clients have set for their jobs."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from heapq import heapify, heappop, heappush

import structlog

from avatarforge.background import BackgroundTasks, monotonic, wait_for_event
from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DeadlineExceeded, StaleEpoch
from avatarforge.domain.jobs import JobError, ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.tracker.jobs.job_table import JobFinished, JobTable

log = structlog.get_logger(__name__)


class _DeadlineMet(Exception):
    """The job was started in time after all."""


class Deadlines:
    """Fails jobs whose time is over, wherever they stand.

    The time of day counts once, when a job is taken up; from then on the monotonic clock does, so that a
    clock that is put right moves no deadline. A job that was made in the future has all its time before it.
    """

    MAX_FINISHED_ENTRIES = 1000
    """Entries up to which those of ended jobs may stay: deadlines are days away where clients are careful."""

    def __init__(self, job_table: JobTable, tasks: BackgroundTasks, now: Callable[[], datetime]) -> None:
        self._job_table = job_table
        self._tasks = tasks
        self._now = now
        self._due: list[tuple[float, str, bool]] = []
        """A heap: when, which job, and whether the job has only to be started by then."""
        self._compact_at = self.MAX_FINISHED_ENTRIES
        """The number of entries at which those of ended jobs are looked for."""
        self._has_new = asyncio.Event()

    def on_change(self, change: JobChange) -> None:
        if change.is_submission:
            # It has all its time before it, whatever another machine's clock wrote down.
            self.add(change.job, change.job.created_at)

    def add(self, job: ProfilePhotoJob, now: datetime) -> None:
        """Hold a job to its deadlines, be it new or of the tracker before."""
        parameters = job.parameters
        waited = max(0.0, (now - job.created_at).total_seconds())
        if parameters.timeout_seconds is not None:
            self._push(parameters.timeout_seconds - waited, job, before_start=False)
        if parameters.start_timeout_seconds is not None and not job.attempt:
            self._push(parameters.start_timeout_seconds - waited, job, before_start=True)

    async def run(self) -> None:
        """End each job in time, for ever."""
        while True:
            self._has_new.clear()
            while self._due and self._due[0][0] <= monotonic():
                _, job_id, before_start = heappop(self._due)
                if self._job_table.get(job_id) is not None:
                    # Beside the others: while the database is away each of them waits.
                    self._tasks.spawn(self._end(job_id, before_start=before_start), "deadline")
            await wait_for_event(self._has_new, self._due[0][0] - monotonic() if self._due else None)

    def _push(self, seconds: float, job: ProfilePhotoJob, *, before_start: bool) -> None:
        if len(self._due) >= self._compact_at:
            self._due = [entry for entry in self._due if self._job_table.get(entry[1]) is not None]
            heapify(self._due)
            self._compact_at = max(self.MAX_FINISHED_ENTRIES, 2 * len(self._due))
        heappush(self._due, (monotonic() + seconds, job.job_id, before_start))
        self._has_new.set()

    async def _end(self, job_id: str, *, before_start: bool) -> None:
        try:
            await self._job_table.update(
                job_id,
                lambda job: _fail_at_deadline(job, self._now(), before_start=before_start),
                EventKind.FAILED,
            )
        except (JobFinished, _DeadlineMet):
            return
        except StaleEpoch:
            raise
        except Exception as error:
            # The edge of a job. It goes on, and ends in another way.
            log.error("deadline could not be kept", job_id=job_id, exc_info=error)


def _fail_at_deadline(job: ProfilePhotoJob, at: datetime, *, before_start: bool) -> ProfilePhotoJob:
    """Return the job at its deadline. Raises `_DeadlineMet`."""
    if before_start and job.attempt:
        raise _DeadlineMet
    if before_start:
        field, seconds, missed = "startTimeoutSeconds", job.parameters.start_timeout_seconds, "started"
    else:
        field, seconds, missed = "timeoutSeconds", job.parameters.timeout_seconds, "ended"
    error = DeadlineExceeded(field, seconds or 0.0, missed)
    return job.fail(JobError(code=error.code, message=str(error)), at)
