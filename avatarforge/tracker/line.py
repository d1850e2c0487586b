"""The waiting line: which job goes next."""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import islice

from avatarforge.domain.jobs import ProfilePhotoJob


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

    def pop(self) -> ProfilePhotoJob | None:
        """The job whose turn it is, out of the line; `None` when nobody waits."""
        while self._turns:
            priority = max(self._turns)
            customers = self._turns[priority]
            customer_id, heap = next(iter(customers.items()))
            job = self._jobs.pop(heappop(heap), None)
            if heap:
                # A job that had left the line costs its customer no turn.
                customers.move_to_end(customer_id, last=job is not None)
            else:
                del customers[customer_id]
                if not customers:
                    del self._turns[priority]
            if job is not None:
                return job
        return None

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
