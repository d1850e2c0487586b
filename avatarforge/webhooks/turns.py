"""Whose turn it is to be called: hosts one after the other, and silent ones in a corner of their own."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Standing(Enum):
    """What is known of a host."""

    SILENT = "its last call brought no answer"
    NEW = "it has not been called, as far as is known"
    ANSWERS = "its last call was answered"


@dataclass(slots=True, eq=False)
class _Host(Generic[T]):
    name: str
    due: deque[T] = field(default_factory=deque)
    calls: int = 0
    queued: bool = False
    """Whether it stands in one of the lines."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn(Generic[T]):
    """Leave to make one call. It ends with `Turns.done`."""

    item: T
    host: _Host[T]
    standing: Standing
    """Of the host when the call began."""


class Turns(Generic[T]):
    """What is due, by host.

    A host gets at most `per_host` calls at a time, and never more than half of all. A host whose last call
    brought no answer is silent: it gets one call at a time until it answers, and all silent hosts together
    get a quarter of the calls. Hosts that were never heard of get one at a time, too, and together half:
    whoever names many hosts that hang does not take it all. So neither one hanging receiver nor many of them
    delay those that answer. What waits for a silent host may come to be called later than planned; none of
    it is dropped.

    The queues have no bound here: what stands in them is in the database too, and their owner says what it
    keeps in memory.
    """

    MOST_REMEMBERED = 10_000
    """Hosts of each standing that are remembered; the one that has it longest is forgotten."""

    def __init__(self, *, per_host: int, concurrency: int) -> None:
        self._concurrency = concurrency
        self._per_host = max(1, min(per_host, concurrency // 2))
        self._most = {
            Standing.SILENT: max(1, concurrency // 4),
            Standing.NEW: max(1, concurrency // 2),
            Standing.ANSWERS: concurrency,
        }
        self._hosts: dict[str, _Host[T]] = {}
        self._remembered: dict[Standing, dict[str, None]] = {Standing.SILENT: {}, Standing.ANSWERS: {}}
        self._lines: dict[Standing, deque[_Host[T]]] = {standing: deque() for standing in Standing}
        """Hosts that could be called now."""
        self._calls = dict.fromkeys(Standing, 0)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return sum(self._calls.values())

    def put(self, name: str, item: T) -> None:
        """The item is due at the host of this name."""
        host = self._hosts.setdefault(name, _Host(name))
        host.due.append(item)
        self._line_up(host)

    def take(self) -> Turn[T] | None:
        """Leave for the next call; `None` when all that may be under way is, or nothing is due."""
        while (standing := self._next_line()) is not None:
            host = self._lines[standing].popleft()
            host.queued = False
            if self._standing(host.name) is not standing:
                # It fell silent, or answered, while it stood in line.
                self._line_up(host)
                continue
            turn = Turn(host.due.popleft(), host, standing)
            host.calls += 1
            self._calls[standing] += 1
            self._line_up(host)
            return turn
        return None

    def done(self, turn: Turn[T], *, answered: bool | None) -> None:
        """The call has ended. `None` when it never came to the host."""
        host = turn.host
        host.calls -= 1
        self._calls[turn.standing] -= 1
        if answered is not None:
            self._remember(host.name, Standing.ANSWERS if answered else Standing.SILENT)
        self._line_up(host)
        if not host.due and not host.calls:
            del self._hosts[host.name]

    def _next_line(self) -> Standing | None:
        """Whose line moves next: the less that is known of hosts, the fewer calls they may have in all."""
        if self.calls >= self._concurrency:
            return None
        free = (
            standing
            for standing in Standing
            if self._lines[standing] and self._calls[standing] < self._most[standing]
        )
        return next(free, None)

    def _standing(self, name: str) -> Standing:
        return next((standing for standing, names in self._remembered.items() if name in names), Standing.NEW)

    def _remember(self, name: str, standing: Standing) -> None:
        for names in self._remembered.values():
            names.pop(name, None)
        names = self._remembered[standing]
        names[name] = None
        if len(names) > self.MOST_REMEMBERED:
            del names[next(iter(names))]

    def _line_up(self, host: _Host[T]) -> None:
        standing = self._standing(host.name)
        most = self._per_host if standing is Standing.ANSWERS else 1
        if host.due and not host.queued and host.calls < most:
            host.queued = True
            self._lines[standing].append(host)
