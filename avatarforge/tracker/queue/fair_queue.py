"""The queue of waiting jobs, fair between customers."""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from avatarforge.domain.jobs import ProfilePhotoJob

Predicate = Callable[[ProfilePhotoJob], bool]
"""Tells whether a job may go now."""


def _accept_any(job: ProfilePhotoJob) -> bool:
    return True


class FairQueue:
    """Jobs in the order in which they go: by priority, then fair between customers, then oldest first.

    Fair means in turns: within a priority each customer with waiting jobs gives one, then the next customer
    does; whoever joins the queue stands before those who had a turn in this round. So one customer's many
    jobs delay another's single one by no more than those that run already. A job of several images takes as
    many turns: its customer has none in the rounds that follow, for each further image one. Job ids sort by
    the time they were made (UUIDv7), so that a job that comes back stands before its customer's younger ones.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self._rounds: dict[int, _RoundRobin] = {}
        """By priority. Ids whose job has left the queue stay in their heap until they come up."""
        self.image_count = 0
        """Images that the jobs are waiting for."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, job: ProfilePhotoJob) -> bool:
        """Queue the job; one that is in the queue already keeps its place. Returns whether it is alone."""
        if job.job_id in self._jobs:
            return False
        self._jobs[job.job_id] = job
        self.image_count += len(job.missing)
        heappush(self._rounds.setdefault(job.priority, _RoundRobin()).heap_of(job.customer_id), job.job_id)
        return len(self._jobs) == 1

    def remove(self, job_id: str) -> ProfilePhotoJob | None:
        """Take the job out of the queue; `None` if it is not there."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self.image_count -= len(job.missing)
        return job

    def pop(self, fits: Predicate = _accept_any) -> ProfilePhotoJob | None:
        """Take out and return the job whose turn it is among those that fit; `None` when there is none.

        One that does not fit keeps its place, and costs its customer no turn.
        """
        for priority in sorted(self._rounds, reverse=True):
            round_robin = self._rounds[priority]
            job, emptied = self._take_first(round_robin, fits)
            if job is not None:
                self.remove(job.job_id)
                round_robin.record_turn(job.customer_id, len(job.missing))
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
        for _, customer_id, heap in round_robin.in_order():
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
        """Return the ids of the first jobs in the order in which they would go as things stand. The last of
        them brings the images that they wait for up to `limit`."""
        listed: list[str] = []
        images = 0
        for job_id, waited_for in self._iterate():
            if images >= limit:
                break
            listed.append(job_id)
            images += waited_for
        return tuple(listed)

    def _iterate(self) -> Iterator[tuple[str, int]]:
        """Yield ids with the number of images that the job waits for."""
        for priority in sorted(self._rounds, reverse=True):
            # Begun as they are asked for: of very many customers the first ones are. Those who had a turn
            # come back among the others.
            round_robin = self._rounds[priority]
            customers = round_robin.in_order()
            coming = next(customers, None)
            back: list[tuple[_Place, int, Iterator[str]]] = []
            for number in count():
                if coming is not None and not (back and back[0][0] < coming[0]):
                    place, queue = coming[0], self._iterate_heap(coming[2])
                    coming = next(customers, None)
                elif back:
                    place, _, queue = heappop(back)
                else:
                    break
                if (job_id := next(queue, None)) is not None:
                    job = self._jobs[job_id]
                    images = 1 if job.parameters.variants == 1 else len(job.missing)
                    yield job_id, images
                    heappush(back, (round_robin.place_after(place, images), number, queue))

    def _iterate_heap(self, heap: list[str]) -> Iterator[str]:
        """Yield oldest first. Only what is asked for is put in order: of a long queue the first ones are."""
        left = heap.copy()
        while left:
            if (job_id := heappop(left)) in self._jobs:
                yield job_id


class _Place(NamedTuple):
    """Where a customer stands: in a round, and there before those who had a turn already or among them."""

    round: int
    had_turn: bool


class _RoundRobin:
    """Customers in the order of their turns, each with a heap of job ids."""

    def __init__(self) -> None:
        self._round = 0
        """The newest round that a turn was taken in. Customers whose jobs no backend takes may stand in an
        older one."""
        self._groups: dict[_Place, dict[str, list[str]]] = {}
        """The heaps by place and customer; of one place those who came first go first."""
        self._places: dict[str, _Place] = {}
        self._had_turn: dict[str, _Place] = {}
        """The places that turns have led to and that are still to come, also of those who left the queue with
        their turn: if they come again they stand behind the others."""

    def __len__(self) -> int:
        return len(self._places)

    def heap_of(self, customer_id: str) -> list[str]:
        if customer_id not in self._places:
            newcomer = _Place(self._round + 1, had_turn=False)
            self._put(customer_id, self._had_turn.get(customer_id, newcomer), [])
        return self._groups[self._places[customer_id]][customer_id]

    def in_order(self) -> Iterator[tuple[_Place, str, list[str]]]:
        for place in sorted(self._groups):
            for customer_id, heap in self._groups[place].items():
                yield place, customer_id, heap

    def place_after(self, place: _Place, turns: int) -> _Place:
        """Return the place of a customer who takes so many turns at this one."""
        return _Place(max(place.round, self._round) + turns, had_turn=True)

    def record_turn(self, customer_id: str, turns: int) -> None:
        """Put the customer where it stands after so many turns at once."""
        # Only now: whoever came in since the last turn stands before those who had one.
        if (own := self._places[customer_id]).round > self._round:
            self._round = own.round
            self._had_turn = {
                known: place for known, place in self._had_turn.items() if place.round > self._round
            }
        place = self._had_turn[customer_id] = self.place_after(own, turns)
        self._put(customer_id, place, self.remove(customer_id))

    def remove(self, customer_id: str) -> list[str]:
        """Take the customer out, and return its heap."""
        group = self._groups[place := self._places.pop(customer_id)]
        heap = group.pop(customer_id)
        if not group:
            del self._groups[place]
        return heap

    def _put(self, customer_id: str, place: _Place, heap: list[str]) -> None:
        self._places[customer_id] = place
        self._groups.setdefault(place, {})[customer_id] = heap


def _remove_from(heap: list[str], job_id: str) -> None:
    if heap[0] == job_id:
        heappop(heap)
    else:
        heap.remove(job_id)
        heapify(heap)
