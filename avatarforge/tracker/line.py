"""The waiting line: which job goes next."""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, islice

from avatarforge.domain.jobs import ProfilePhotoJob

Fits = Callable[[ProfilePhotoJob], bool]
"""Whether a job may go now."""


def _any(job: ProfilePhotoJob) -> bool:
    return True


class WaitingLine:
    """Jobs in the order in which they go: by priority, then fair between customers, then oldest first.

    Fair means in turns: within a priority each customer with waiting jobs gives one, then the next customer
    does; whoever comes into the line stands before those who had a turn in this round. So one customer's many
    jobs delay another's single one by no more than those that run already. Job ids sort by the time they were
    made (UUIDv7), so that a job that comes back into the line stands before its customer's younger ones.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._turns: dict[int, _Turns] = {}
        """By priority. Ids whose job has left the line stay in their heap until they come up."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, job: ProfilePhotoJob) -> None:
        """Stand in line; a job that is in it already keeps its place."""
        if job.job_id in self._jobs:
            return
        self._jobs[job.job_id] = job
        heappush(self._turns.setdefault(job.priority, _Turns()).heap_of(job.customer_id), job.job_id)

    def remove(self, job_id: str) -> ProfilePhotoJob | None:
        """Leave the line."""
        return self._jobs.pop(job_id, None)

    def pop(self, fits: Fits = _any) -> ProfilePhotoJob | None:
        """The job whose turn it is among those that fit, out of the line; `None` when there is none.

        One that does not fit keeps its place, and costs its customer no turn.
        """
        for priority in sorted(self._turns, reverse=True):
            turns = self._turns[priority]
            job, emptied = self._taken(turns, fits)
            if job is not None:
                del self._jobs[job.job_id]
                turns.had(job.customer_id)
            for customer_id in emptied:
                turns.remove(customer_id)
            if not turns:
                del self._turns[priority]
            if job is not None:
                return job
        return None

    def has(self, fits: Fits = _any) -> bool:
        """Whether a job that fits waits."""
        return any(fits(job) for job in self._jobs.values())

    def _taken(self, turns: "_Turns", fits: Fits) -> tuple[ProfilePhotoJob | None, list[str]]:
        """The first job that fits, taken from its heap; and the customers whose heaps were found empty."""
        emptied = []
        for customer_id, heap in turns.in_order():
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
            # Begun as they are asked for: of very many customers the first ones are.
            queues: Iterable[Iterator[str]] = (
                self._oldest_first(heap) for _, heap in self._turns[priority].in_order()
            )
            while True:
                left = []
                for queue in queues:
                    if (job_id := next(queue, None)) is not None:
                        yield job_id
                        left.append(queue)
                if not left:
                    break
                queues = left

    def _oldest_first(self, heap: list[str]) -> Iterator[str]:
        """Only what is asked for is put in order: of a long line the first ones are."""
        left = heap.copy()
        while left:
            if (job_id := heappop(left)) in self._jobs:
                yield job_id


class _Turns:
    """Customers in the order of their turns, each with a heap of job ids."""

    def __init__(self) -> None:
        self._now: dict[str, list[str]] = {}
        """Whose turn is still to come in this round."""
        self._fresh: dict[str, list[str]] = {}
        """Who has come into the line since the round began: first in the next one."""
        self._had: dict[str, list[str]] = {}
        """Who has had a turn in this round."""
        self._served: set[str] = set()
        """The same, and those who left the line with it: who comes again stands behind the others."""

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    @property
    def _groups(self) -> tuple[dict[str, list[str]], ...]:
        return self._now, self._fresh, self._had

    def heap_of(self, customer_id: str) -> list[str]:
        for group in self._groups:
            if customer_id in group:
                return group[customer_id]
        group = self._had if customer_id in self._served else self._fresh
        return group.setdefault(customer_id, [])

    def in_order(self) -> Iterator[tuple[str, list[str]]]:
        return chain.from_iterable(group.items() for group in self._groups)

    def had(self, customer_id: str) -> None:
        """The customer has had a turn."""
        if not self._now:
            # Only now: whoever came in since the last turn stands before those who had one.
            self._now, self._fresh, self._had = self._fresh | self._had, {}, {}
            self._served.clear()
        self._had[customer_id] = self.remove(customer_id)
        self._served.add(customer_id)

    def remove(self, customer_id: str) -> list[str]:
        """The customer's heap, out of the turns."""
        group = next(group for group in self._groups if customer_id in group)
        return group.pop(customer_id)


def _take(heap: list[str], job_id: str) -> None:
    if heap[0] == job_id:
        heappop(heap)
    else:
        heap.remove(job_id)
        heapify(heap)
