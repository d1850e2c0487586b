"""The queue of calls by host: hosts take turns, and silent ones wait apart."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class HostHealth(Enum):
    """The outcome of a host's last call."""

    SILENT = "its last call brought no answer"
    NEW = "it has not been called, as far as is known"
    ANSWERS = "its last call was answered"


@dataclass(slots=True, eq=False)
class _Host(Generic[T]):
    name: str
    due: deque[T] = field(default_factory=deque)
    calls: int = 0
    queued: bool = False
    """It stands in one of the queues."""


@dataclass(frozen=True, slots=True, eq=False)
class Permit(Generic[T]):
    """A permit to make one call. It ends with `HostQueue.release`."""

    item: T
    host: _Host[T]
    health: HostHealth
    """Of the host when the call began."""


class HostQueue(Generic[T]):
    """Items that are due, by host.

    A host gets at most `per_host` calls at a time, and never more than half of all. A host whose last call
    brought no answer is silent: it gets one call at a time until it answers, and all silent hosts together
    get a quarter of the calls. Hosts that were never heard of get one at a time, too, and together half:
    whoever names many hosts that hang does not take it all. So neither one hanging receiver nor many of them
    delay those that answer. What waits for a silent host may come to be called later than planned; none of
    it is dropped.

    The queues have no bound here: what stands in them is in the database too, and their owner says what it
    keeps in memory.
    """

    MAX_REMEMBERED_HOSTS = 10_000
    """Hosts remembered for each health; the one that has it longest is forgotten."""

    def __init__(self, *, per_host: int, concurrency: int) -> None:
        self._concurrency = concurrency
        self._per_host = max(1, min(per_host, concurrency // 2))
        self._max_calls = {
            HostHealth.SILENT: max(1, concurrency // 4),
            HostHealth.NEW: max(1, concurrency // 2),
            HostHealth.ANSWERS: concurrency,
        }
        self._hosts: dict[str, _Host[T]] = {}
        self._remembered: dict[HostHealth, dict[str, None]] = {HostHealth.SILENT: {}, HostHealth.ANSWERS: {}}
        self._queues: dict[HostHealth, deque[_Host[T]]] = {health: deque() for health in HostHealth}
        """Hosts that could be called now."""
        self._calls = dict.fromkeys(HostHealth, 0)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return sum(self._calls.values())

    def put(self, name: str, item: T) -> None:
        """Add an item that is due at the host of this name."""
        host = self._hosts.setdefault(name, _Host(name))
        host.due.append(item)
        self._enqueue(host)

    def acquire(self) -> Permit[T] | None:
        """Return a permit for the next call; `None` if no call may begin, or nothing is due."""
        while (health := self._next_queue()) is not None:
            host = self._queues[health].popleft()
            host.queued = False
            if self._health_of(host.name) is not health:
                # It fell silent, or answered, while it was queued.
                self._enqueue(host)
                continue
            permit = Permit(host.due.popleft(), host, health)
            host.calls += 1
            self._calls[health] += 1
            self._enqueue(host)
            return permit
        return None

    def release(self, permit: Permit[T], *, answered: bool | None) -> None:
        """End a call. `answered`: `None` if it never came to the host."""
        host = permit.host
        host.calls -= 1
        self._calls[permit.health] -= 1
        if answered is not None:
            self._remember(host.name, HostHealth.ANSWERS if answered else HostHealth.SILENT)
        self._enqueue(host)
        if not host.due and not host.calls:
            del self._hosts[host.name]

    def _next_queue(self) -> HostHealth | None:
        """Return whose queue moves next: the less is known of hosts, the fewer calls they may have in all."""
        if self.calls >= self._concurrency:
            return None
        free = (
            health
            for health in HostHealth
            if self._queues[health] and self._calls[health] < self._max_calls[health]
        )
        return next(free, None)

    def _health_of(self, name: str) -> HostHealth:
        return next((health for health, names in self._remembered.items() if name in names), HostHealth.NEW)

    def _remember(self, name: str, health: HostHealth) -> None:
        for names in self._remembered.values():
            names.pop(name, None)
        names = self._remembered[health]
        names[name] = None
        if len(names) > self.MAX_REMEMBERED_HOSTS:
            del names[next(iter(names))]

    def _enqueue(self, host: _Host[T]) -> None:
        health = self._health_of(host.name)
        max_calls = self._per_host if health is HostHealth.ANSWERS else 1
        if host.due and not host.queued and host.calls < max_calls:
            host.queued = True
            self._queues[health].append(host)
