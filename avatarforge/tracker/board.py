"""The board: a shard's unfinished jobs as they stand. It changes by commits only, and tells after them."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from weakref import WeakValueDictionary

from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.telemetry import traces
from avatarforge.tracker.committer import Committer


class Gone(Exception):
    """The job came to its end, or was erased, before its next move could begin."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class Board:
    """Unfinished jobs by id. A job's moves follow one another: each is committed before the next begins."""

    def __init__(
        self, committer: Committer, tell: Callable[[JobChange], None], now: Callable[[], datetime]
    ) -> None:
        """`tell` hears of every committed change, after the board shows it."""
        self._committer = committer
        self._tell = tell
        self._now = now
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def load(self, jobs: Iterable[ProfilePhotoJob]) -> None:
        """Begin with what the database has."""
        self._jobs = {job.job_id: job for job in jobs}

    def get(self, job_id: str) -> ProfilePhotoJob | None:
        return self._jobs.get(job_id)

    def jobs(self) -> tuple[ProfilePhotoJob, ...]:
        return tuple(self._jobs.values())

    def turn(self, job_id: str) -> asyncio.Lock:
        """Held while a move of the job is decided and committed."""
        # Kept by whoever holds or awaits it, and forgotten with the last of them.
        lock = self._turns.get(job_id)
        if lock is None:
            lock = self._turns[job_id] = asyncio.Lock()
        return lock

    async def accept(self, new: NewJob) -> ProfilePhotoJob:
        """Commit a submission. Raises `DatabaseUnavailable`; then nothing of it stays."""
        job = new.job
        identity = {"job_id": job.job_id, "customer_id": job.customer_id}
        with traces.span("commit", job.parameters.traceparent, attributes=identity):
            return await self._accept(new)

    async def _accept(self, new: NewJob) -> ProfilePhotoJob:
        job = new.job
        change = JobChange(
            job=job,
            event=job.event(EventKind.SUBMITTED, job.created_at),
            idempotency_key=new.idempotency_key,
        )
        return (await self._committer.accept(change)).job

    async def change(
        self, job_id: str, becomes: Callable[[ProfilePhotoJob], ProfilePhotoJob], kind: EventKind
    ) -> ProfilePhotoJob:
        """Commit what the job becomes, after the move that is under way.

        Raises `Gone`, and what `becomes` raises for a job that may not move so.
        """
        async with self.turn(job_id):
            job = self._jobs.get(job_id)
            if job is None:
                raise Gone(job_id)
            return await self.write(becomes(job), kind)

    async def write(self, job: ProfilePhotoJob, kind: EventKind) -> ProfilePhotoJob:
        """Commit the job's new value. The caller has the job's turn."""
        change = JobChange(job=job, event=job.event(kind, self._now()))
        return (await self._committer.commit(change)).job

    def committed(self, change: JobChange) -> None:
        """Show the change, and tell of it. For the committer, which knows the order of the log."""
        job = change.job
        if job.status.is_terminal or change.is_erasure:
            self._jobs.pop(job.job_id, None)
        else:
            self._jobs[job.job_id] = job
        self._tell(change)
