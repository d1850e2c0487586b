"""The unfinished jobs of a shard, and their changes one after the other."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from weakref import WeakValueDictionary

from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.telemetry import traces
from avatarforge.tracker.jobs.committer import ChangeListener, Committer


class JobFinished(Exception):
    """The job came to its end, or was erased, before its next change could begin."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class JobTable:
    """Unfinished jobs by id. A job's changes follow one another: each is committed before the next begins."""

    def __init__(self, committer: Committer, now: Callable[[], datetime]) -> None:
        self._committer = committer
        self._now = now
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._listeners: list[ChangeListener] = []
        committer.subscribe(self._apply)

    def subscribe(self, *listeners: ChangeListener) -> None:
        """Call the listeners with every committed change, once the table shows it, in the log's order."""
        self._listeners.extend(listeners)

    def load(self, jobs: Iterable[ProfilePhotoJob]) -> None:
        """Begin with the jobs that the database has."""
        self._jobs = {job.job_id: job for job in jobs}

    def get(self, job_id: str) -> ProfilePhotoJob | None:
        return self._jobs.get(job_id)

    def all(self) -> tuple[ProfilePhotoJob, ...]:
        return tuple(self._jobs.values())

    def lock_for(self, job_id: str) -> asyncio.Lock:
        """Return the lock to hold while a change of the job is decided and committed."""
        # Kept by whoever holds or awaits it, and forgotten with the last of them.
        lock = self._locks.get(job_id)
        if lock is None:
            lock = self._locks[job_id] = asyncio.Lock()
        return lock

    async def insert(self, new: NewJob) -> ProfilePhotoJob:
        """Commit a submission. Raises `DatabaseUnavailable`; then nothing of it stays."""
        job = new.job
        identity = {"job_id": job.job_id, "customer_id": job.customer_id}
        with traces.span("commit", job.parameters.traceparent, attributes=identity):
            change = JobChange(
                job=job,
                event=job.event(EventKind.SUBMITTED, job.created_at),
                idempotency_key=new.idempotency_key,
            )
            return (await self._committer.accept(change)).job

    async def update(
        self, job_id: str, transition: Callable[[ProfilePhotoJob], ProfilePhotoJob], kind: EventKind
    ) -> ProfilePhotoJob:
        """Commit the job's next value, after the change that is under way.

        Raises `JobFinished`, and what `transition` raises for a job that may not change so.
        """
        async with self.lock_for(job_id):
            job = self._jobs.get(job_id)
            if job is None:
                raise JobFinished(job_id)
            return await self.write(transition(job), kind)

    async def write(self, job: ProfilePhotoJob, kind: EventKind) -> ProfilePhotoJob:
        """Commit the job's new value. The caller holds the job's lock."""
        change = JobChange(job=job, event=job.event(kind, self._now()))
        return (await self._committer.commit(change)).job

    def _apply(self, change: JobChange) -> None:
        job = change.job
        if job.status.is_terminal or change.is_erasure:
            self._jobs.pop(job.job_id, None)
        else:
            self._jobs[job.job_id] = job
        for listener in self._listeners:
            listener(change)
