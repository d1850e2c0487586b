"""The deadlines that clients have set for their jobs."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from heapq import heapify, heappop, heappush

from avatarforge.domain.errors import DeadlineExceeded
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import JobError, ProfilePhotoJob
from avatarforge.tracker.board import Board, Gone
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.own import Own


class _Met(Exception):
    """The job was started in time after all."""


class Deadlines:
    """Fails jobs whose time is over, wherever they stand.

    The time of day counts once, when a job is taken up; from then on the steady clock does, so that a clock
    that is put right moves no deadline. A job that was made in the future has all of its time before it.
    """

    FEW = 1000
    """Entries up to which those of ended jobs may stay: deadlines are days away where clients are careful."""

    def __init__(self, board: Board, own: Own, now: Callable[[], datetime]) -> None:
        self._board = board
        self._own = own
        self._now = now
        self._due: list[tuple[float, str, bool]] = []
        """A heap: when, which job, and whether the job has only to be started by then."""
        self._tidied_at = self.FEW
        """Of how many entries those of ended jobs are looked for."""
        self._news = asyncio.Event()

    def watch(self, job: ProfilePhotoJob) -> None:
        """Take up a job, that was accepted now or before."""
        parameters = job.parameters
        waited = max(0.0, (self._now() - job.created_at).total_seconds())
        if parameters.timeout_seconds is not None:
            self._expect(parameters.timeout_seconds - waited, job, before_start=False)
        if parameters.start_timeout_seconds is not None and not job.attempt:
            self._expect(parameters.start_timeout_seconds - waited, job, before_start=True)

    async def work_forever(self) -> None:
        """End each job in time."""
        while True:
            self._news.clear()
            while self._due and self._due[0][0] <= steady():
                _, job_id, before_start = heappop(self._due)
                if self._board.get(job_id) is not None:
                    # Beside the others: while the database is away each of them waits.
                    self._own(self._end(job_id, before_start=before_start), "deadline")
            pause = self._due[0][0] - steady() if self._due else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    def _expect(self, seconds: float, job: ProfilePhotoJob, *, before_start: bool) -> None:
        if len(self._due) >= self._tidied_at:
            self._due = [entry for entry in self._due if self._board.get(entry[1]) is not None]
            heapify(self._due)
            self._tidied_at = max(self.FEW, 2 * len(self._due))
        heappush(self._due, (steady() + seconds, job.job_id, before_start))
        self._news.set()

    async def _end(self, job_id: str, *, before_start: bool) -> None:
        with suppress(Gone, _Met):
            await self._board.change(
                job_id, lambda job: _failed(job, self._now(), before_start=before_start), EventKind.FAILED
            )


def _failed(job: ProfilePhotoJob, at: datetime, *, before_start: bool) -> ProfilePhotoJob:
    """The job at its deadline. Raises `_Met`."""
    if before_start and job.attempt:
        raise _Met
    if before_start:
        field, seconds, missed = "startTimeoutSeconds", job.parameters.start_timeout_seconds, "started"
    else:
        field, seconds, missed = "timeoutSeconds", job.parameters.timeout_seconds, "ended"
    error = DeadlineExceeded(field, seconds or 0.0, missed)
    return job.failed(JobError(code=error.code, message=str(error)), at)
