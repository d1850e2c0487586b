"""The queue of waiting jobs, fair between customers."""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, islice

from avatarforge.domain.jobs import ProfilePhotoJob

Predicate = Callable[[ProfilePhotoJob], bool]
"""Tells whether a job may go now."""


def _accept_any(job: ProfilePhotoJob) -> bool:
    return True


class FairQueue:
    """Jobs in the order in which they go: by priority, then fair between customers, then oldest first.

    Fair means in turns: within a priority each customer with waiting jobs gives one, then the next customer
    does; whoever joins the queue stands before those who had a turn in this round. So one customer's many
    jobs delay another's single one by no more than those that run already. Job ids sort by the time they were
    made (UUIDv7), so that a job that comes back stands before its customer's younger ones.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._rounds: dict[int, _RoundRobin] = {}
        """By priority. Ids whose job has left the queue stay in their heap until they come up."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, job: ProfilePhotoJob) -> bool:
        """Queue the job; one that is in the queue already keeps its place. Returns whether it is alone."""
        if job.job_id in self._jobs:
            return False
        self._jobs[job.job_id] = job
        heappush(self._rounds.setdefault(job.priority, _RoundRobin()).heap_of(job.customer_id), job.job_id)
        return len(self._jobs) == 1

    def remove(self, job_id: str) -> ProfilePhotoJob | None:
        """Take the job out of the queue; `None` if it is not there."""
        return self._jobs.pop(job_id, None)

    def pop(self, fits: Predicate = _accept_any) -> ProfilePhotoJob | None:
        """Take out and return the job whose turn it is among those that fit; `None` when there is none.

        One that does not fit keeps its place, and costs its customer no turn.
        """
        for priority in sorted(self._rounds, reverse=True):
            round_robin = self._rounds[priority]
            job, emptied = self._take_first(round_robin, fits)
            if job is not None:
                del self._jobs[job.job_id]
                round_robin.record_turn(job.customer_id)
            for customer_id in emptied:
                round_robin.remove(customer_id)
            if not round_robin:
                del self._rounds[priority]
            if job is not None:
                return job
        return None

    def has(self, fits: Predicate = _accept_any) -> bool:
        """Tell whether a job that fits waits."""
        return any(fits(job) for job in self._jobs.values())

    def _take_first(
        self, round_robin: "_RoundRobin", fits: Predicate
    ) -> tuple[ProfilePhotoJob | None, list[str]]:
        """Take the first job that fits from its heap; return it and the customers whose heaps are empty."""
        emptied = []
        for customer_id, heap in round_robin.in_order():
            while heap and heap[0] not in self._jobs:
                heappop(heap)
            job = self._find_first(heap, fits)
            if job is not None:
                _remove_from(heap, job.job_id)
            if not heap:
                emptied.append(customer_id)
            if job is not None:
                return job, emptied
        return None, emptied

    def _find_first(self, heap: list[str], fits: Predicate) -> ProfilePhotoJob | None:
        if heap and fits(first := self._jobs[heap[0]]):
            return first
        others = (self._jobs[job_id] for job_id in heap[1:] if job_id in self._jobs)
        return min((job for job in others if fits(job)), key=lambda job: job.job_id, default=None)

    def list_next(self, limit: int) -> tuple[str, ...]:
        """Return the ids of the first jobs in the order in which they would go as things stand."""
        return tuple(islice(self._iterate(), limit))

    def _iterate(self) -> Iterator[str]:
        for priority in sorted(self._rounds, reverse=True):
            # Begun as they are asked for: of very many customers the first ones are.
            queues: Iterable[Iterator[str]] = (
                self._iterate_heap(heap) for _, heap in self._rounds[priority].in_order()
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

    def _iterate_heap(self, heap: list[str]) -> Iterator[str]:
        """Yield oldest first. Only what is asked for is put in order: of a long queue the first ones are."""
        left = heap.copy()
        while left:
            if (job_id := heappop(left)) in self._jobs:
                yield job_id


class _RoundRobin:
    """Customers in the order of their turns, each with a heap of job ids."""

    def __init__(self) -> None:
        self._pending: dict[str, list[str]] = {}
        """Customers whose turn is still to come in this round."""
        self._new: dict[str, list[str]] = {}
        """Customers who have joined the queue since the round began: first in the next one."""
        self._done: dict[str, list[str]] = {}
        """Customers who have had a turn in this round."""
        self._served: set[str] = set()
        """The same, and those who left the queue with it: if they come again they stand behind the others."""

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    @property
    def _groups(self) -> tuple[dict[str, list[str]], ...]:
        return self._pending, self._new, self._done

    def heap_of(self, customer_id: str) -> list[str]:
        for group in self._groups:
            if customer_id in group:
                return group[customer_id]
        group = self._done if customer_id in self._served else self._new
        return group.setdefault(customer_id, [])

    def in_order(self) -> Iterator[tuple[str, list[str]]]:
        return chain.from_iterable(group.items() for group in self._groups)

    def record_turn(self, customer_id: str) -> None:
        if not self._pending:
            # Only now: whoever came in since the last turn stands before those who had one.
            self._pending, self._new, self._done = self._new | self._done, {}, {}
            self._served.clear()
        self._done[customer_id] = self.remove(customer_id)
        self._served.add(customer_id)

    def remove(self, customer_id: str) -> list[str]:
        """Take the customer out, and return its heap."""
        group = next(group for group in self._groups if customer_id in group)
        return group.pop(customer_id)


def _remove_from(heap: list[str], job_id: str) -> None:
    if heap[0] == job_id:
        heappop(heap)
    else:
        heap.remove(job_id)
        heapify(heap)
