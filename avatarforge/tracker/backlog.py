"""The backlog: how many jobs wait and run, and how many more may come."""

import math
from collections import Counter
from collections.abc import Callable, Iterable

from avatarforge.domain.errors import BacklogFull, CustomerBacklogFull
from avatarforge.domain.jobs import ProfilePhotoJob


class Backlog:
    """Counts a shard's unfinished jobs, by customer and in all, and refuses those that are too many."""

    UNKNOWN, LONGEST = 10, 3600
    """Seconds after which a refused client is asked to come back: while nothing was measured yet, and at
    most."""
    FREED = 0.1
    """Share of a limit that is to be done before a refused client comes back: of many that come back for one
    place all but one are refused again."""

    def __init__(self, most: int, most_of_customer: int, seconds_per_job: Callable[[], float | None]) -> None:
        """`seconds_per_job` tells how long it takes from one finished job to the next, once it is known."""
        self._most = most
        self._most_of_customer = most_of_customer
        self._seconds_per_job = seconds_per_job
        self._jobs: dict[str, str] = {}
        """Job ids to customer ids."""
        self._customers: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def load(self, jobs: Iterable[ProfilePhotoJob]) -> None:
        """Begin with jobs that were accepted before, however many they are."""
        for job in jobs:
            self._add(job)

    def enter(self, job: ProfilePhotoJob) -> None:
        """Count a job that is about to be accepted. Raises `CustomerBacklogFull` and `BacklogFull`."""
        if self._customers[job.customer_id] >= self._most_of_customer:
            # Customers take turns, so that this one's jobs end as much more slowly as there are others.
            pause = self._pause(self._most_of_customer, len(self._customers))
            raise CustomerBacklogFull(self._most_of_customer, pause)
        if len(self._jobs) >= self._most:
            raise BacklogFull(self._most, self._pause(self._most, 1))
        self._add(job)

    def leave(self, job_id: str) -> None:
        """The job has ended, or was not accepted after all."""
        customer_id = self._jobs.pop(job_id, None)
        if customer_id is not None:
            self._customers[customer_id] -= 1
            if not self._customers[customer_id]:
                del self._customers[customer_id]

    def _add(self, job: ProfilePhotoJob) -> None:
        self._jobs[job.job_id] = job.customer_id
        self._customers[job.customer_id] += 1

    def _pause(self, limit: int, turns: int) -> int:
        seconds_per_job = self._seconds_per_job()
        if seconds_per_job is None:
            return self.UNKNOWN
        return max(1, min(self.LONGEST, math.ceil(seconds_per_job * turns * limit * self.FREED)))
