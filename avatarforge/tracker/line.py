"""The waiting line: which job goes next."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice

from avatarforge.domain.jobs import ProfilePhotoJob

Fits = Callable[[ProfilePhotoJob], bool]
"""Whether a job may go now."""


def _any(job: ProfilePhotoJob) -> bool:
    return True


class WaitingLine:
    """Jobs in the order in which they go: by priority, then fair between customers, then oldest first.

    Fair means in turns: within a priority each customer with waiting jobs gives one, then the next
    customer does. Job ids sort by the time they were made (UUIDv7), so that a job that comes back into
    the line stands before its customer's younger ones.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._turns: dict[int, OrderedDict[str, list[str]]] = {}
        """Priority to customers, in the order of their turns, to a heap of job ids. Ids whose job has left
        the line stay in their heap until they come up."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, job: ProfilePhotoJob) -> None:
        """Stand in line; a job that is in it already keeps its place."""
        if job.job_id in self._jobs:
            return
        self._jobs[job.job_id] = job
        customers = self._turns.setdefault(job.priority, OrderedDict())
        heappush(customers.setdefault(job.customer_id, []), job.job_id)

    def remove(self, job_id: str) -> ProfilePhotoJob | None:
        """Leave the line."""
        return self._jobs.pop(job_id, None)

    def pop(self, fits: Fits = _any) -> ProfilePhotoJob | None:
        """The job whose turn it is among those that fit, out of the line; `None` when there is none.

        One that does not fit keeps its place, and costs its customer no turn.
        """
        for priority in sorted(self._turns, reverse=True):
            customers = self._turns[priority]
            job, emptied = self._taken(customers, fits)
            if job is not None:
                del self._jobs[job.job_id]
                customers.move_to_end(job.customer_id)
            for customer_id in emptied:
                del customers[customer_id]
            if not customers:
                del self._turns[priority]
            if job is not None:
                return job
        return None

    def has(self, fits: Fits = _any) -> bool:
        """Whether a job that fits waits."""
        return any(fits(job) for job in self._jobs.values())

    def _taken(
        self, customers: OrderedDict[str, list[str]], fits: Fits
    ) -> tuple[ProfilePhotoJob | None, list[str]]:
        """The first job that fits, taken from its heap; and the customers whose heaps were found empty."""
        emptied = []
        for customer_id, heap in customers.items():
            while heap and heap[0] not in self._jobs:
                heappop(heap)
            job = self._first(heap, fits)
            if job is not None:
                _take(heap, job.job_id)
            if not heap:
                emptied.append(customer_id)
            if job is not None:
                return job, emptied
        return None, emptied

    def _first(self, heap: list[str], fits: Fits) -> ProfilePhotoJob | None:
        if heap and fits(first := self._jobs[heap[0]]):
            return first
        others = (self._jobs[job_id] for job_id in heap[1:] if job_id in self._jobs)
        return min((job for job in others if fits(job)), key=lambda job: job.job_id, default=None)

    def in_order(self, most: int) -> tuple[str, ...]:
        """Ids of the first `most` jobs in the order in which they would go as things stand."""
        return tuple(islice(self._ordered(), most))

    def _ordered(self) -> Iterator[str]:
        for priority in sorted(self._turns, reverse=True):
            queues = [
                iter(sorted(job_id for job_id in heap if job_id in self._jobs))
                for heap in self._turns[priority].values()
            ]
            while queues:
                left = []
                for queue in queues:
                    if (job_id := next(queue, None)) is not None:
                        yield job_id
                        left.append(queue)
                queues = left


def _take(heap: list[str], job_id: str) -> None:
    if heap[0] == job_id:
        heappop(heap)
    else:
        heap.remove(job_id)
        heapify(heap)
