"""Admission control: how many images may be waited for."""

import math
from collections import Counter
from collections.abc import Iterable

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import BacklogFull, CustomerBacklogFull
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.queue.backends import Throughput


class AdmissionControl:
    """Counts a shard's unfinished jobs, by customer and in all, and refuses those that are too many.

    A job of several images counts as so many; alone it is accepted, however low the limit.
    """

    UNKNOWN_RETRY_SECONDS, MAX_RETRY_SECONDS = 10, 3600
    """Seconds after which a refused client is asked to come back: while nothing was measured yet, and at
    most."""
    FREED_SHARE = 0.1
    """Share of a limit that is to be done before a refused client comes back: of many that come back for one
    place all but one are refused again."""

    def __init__(self, settings: TrackerSettings, throughput: Throughput) -> None:
        self._max_jobs = settings.max_backlog
        self._max_jobs_of_customer = settings.max_backlog_per_customer
        self._throughput = throughput
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._count = 0
        self._customers: Counter[str] = Counter()

    def load(self, jobs: Iterable[ProfilePhotoJob]) -> None:
        """Begin with jobs that were accepted before, however many they are."""
        for job in jobs:
            self._add(job)

    def admit(self, job: ProfilePhotoJob) -> None:
        """Count a job that is about to be accepted. Raises `CustomerBacklogFull` and `BacklogFull`."""
        images = job.parameters.variants
        if 0 < self._customers[job.customer_id] > self._max_jobs_of_customer - images:
            # Customers take turns, so that this one's jobs end as much more slowly as there are others.
            delay = self._retry_seconds(self._max_jobs_of_customer, len(self._customers))
            raise CustomerBacklogFull(self._max_jobs_of_customer, delay)
        if 0 < self._count > self._max_jobs - images:
            raise BacklogFull(self._max_jobs, self._retry_seconds(self._max_jobs, 1))
        self._add(job)

    def release(self, job_id: str) -> None:
        """Count the job no more: it has ended, or was not accepted after all."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._count -= job.parameters.variants
            self._customers[job.customer_id] -= job.parameters.variants
            if not self._customers[job.customer_id]:
                del self._customers[job.customer_id]

    def on_change(self, change: JobChange) -> None:
        if change.is_erasure or change.job.status.is_terminal:
            self.release(change.job.job_id)

    def _add(self, job: ProfilePhotoJob) -> None:
        self._jobs[job.job_id] = job
        self._count += job.parameters.variants
        self._customers[job.customer_id] += job.parameters.variants

    def _retry_seconds(self, limit: int, customers: int) -> int:
        if (seconds_per_image := self._throughput.interval) is None:
            return self.UNKNOWN_RETRY_SECONDS
        seconds = math.ceil(seconds_per_image * customers * limit * self.FREED_SHARE)
        return max(1, min(self.MAX_RETRY_SECONDS, seconds))
