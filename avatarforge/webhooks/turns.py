"""Whose turn it is to be called: hosts one after the other, and silent ones in a corner of their own."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Host(Generic[T]):
    name: str
    due: deque[T] = field(default_factory=deque)
    calls: int = 0
    queued: bool = False
    """Whether it stands in one of the two lines."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn(Generic[T]):
    """Leave to make one call. It ends with `Turns.done`."""

    item: T
    host: _Host[T]
    is_silent: bool


class Turns(Generic[T]):
    """What is due, by host.

    A host gets at most `per_host` calls at a time, and never more than half of all. A host whose last call
    brought no answer is silent: it gets one call at a time until it answers, and all silent hosts together
    get a quarter of the calls. So neither one hanging receiver nor many of them delay those that answer. What
    waits for a silent host may come to be called later than planned; none of it is dropped.

    The queues have no bound here: what stands in them is in the database too, and their owner says what it
    keeps in memory.
    """

    MOST_SILENT = 10_000
    """Hosts that are remembered as silent; the one that fell silent first is forgotten."""

    def __init__(self, *, per_host: int, concurrency: int) -> None:
        self._concurrency = concurrency
        self._per_host = max(1, min(per_host, concurrency // 2))
        self._for_silent = max(1, concurrency // 4)
        self._hosts: dict[str, _Host[T]] = {}
        self._silent: dict[str, None] = {}
        self._lines: dict[bool, deque[_Host[T]]] = {False: deque(), True: deque()}
        """Hosts that could be called now, those that answer and those that are silent."""
        self._calls = {False: 0, True: 0}

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
        while self.calls < self._concurrency:
            is_silent = bool(self._lines[True]) and self._calls[True] < self._for_silent
            if not self._lines[is_silent]:
                return None
            host = self._lines[is_silent].popleft()
            host.queued = False
            if (host.name in self._silent) is not is_silent:
                # It fell silent, or answered, while it stood in line.
                self._line_up(host)
                continue
            turn = Turn(host.due.popleft(), host, is_silent)
            host.calls += 1
            self._calls[is_silent] += 1
            self._line_up(host)
            return turn
        return None

    def done(self, turn: Turn[T], *, answered: bool | None) -> None:
        """The call has ended. `None` when it never came to the host."""
        host = turn.host
        host.calls -= 1
        self._calls[turn.is_silent] -= 1
        if answered is not None:
            self._silent.pop(host.name, None)
        if answered is False:
            self._silent[host.name] = None
            if len(self._silent) > self.MOST_SILENT:
                del self._silent[next(iter(self._silent))]
        self._line_up(host)
        if not host.due and not host.calls:
            del self._hosts[host.name]

    def _line_up(self, host: _Host[T]) -> None:
        is_silent = host.name in self._silent
        if host.due and not host.queued and host.calls < (1 if is_silent else self._per_host):
            host.queued = True
            self._lines[is_silent].append(host)
