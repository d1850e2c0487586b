"""A database behind a network: slow, gone for a while, cut off in the middle, or silent about what it did."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import pymysql
from sqlalchemy.exc import OperationalError

from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.persistence.database import translate_errors
from tests.servers.mariadb import OUTAGE_ERRORS
from tests.simulation.loop import Process, SimulatedLoop, block
from tests.simulation.trace import Trace
from tests.simulation.weather import Weather

_OF_A_SHARD = frozenset(
    {"claim_shard", "check", "commit", "read_back", "forget_customer", "prune", "keep_model", "keep_lease"}
)
"""Calls that wait for the shard's row, or for the rows of a transaction that holds it."""
_WRITES = _OF_A_SHARD | {"record", "reschedule", "complete", "postpone"}
LOCK_WAIT = 9.0
"""Seconds after which a lock is given up, as our sessions of MariaDB do."""

Wake = Callable[[Any], None]


@dataclass(slots=True, eq=False)
class _Call:
    name: str
    arguments: tuple[Any, ...]
    process: Process
    wake: Wake
    fate: str
    shard: int | None
    is_answered: bool = False
    is_over: bool = False


@dataclass(slots=True)
class _Failed:
    error: Exception


@dataclass(slots=True)
class _Lock:
    holder: _Call | None = None
    waiting: deque[_Call] = field(default_factory=deque)


class DatabaseServer:
    """Carries calls out on `inner`, one transaction a shard at a time. What it has begun it ends, whoever has
    died meanwhile, unless the connection's loss reaches it first."""

    def __init__(
        self,
        loop: SimulatedLoop,
        inner: Any,
        weather: Weather,
        chance: Random,
        trace: Trace,
        on_written: Callable[[str, tuple[Any, ...], Any], None],
    ) -> None:
        """`on_written` hears of every write in the moment in which it comes about: its name, arguments and
        result, or the error that refused it."""
        self._loop = loop
        self._inner = inner
        self._weather = weather
        self._chance = chance
        self._trace = trace
        self._on_written = on_written
        self._locks: dict[int, _Lock] = {}
        self._under_way: list[_Call] = []
        self.is_down = False
        self.is_calm = False
        """Whether nothing goes wrong any more."""

    def client(self) -> Any:
        """Has the record's methods. Each blocks the simulated thread that calls it."""
        return _Client(self)

    def go_down(self) -> None:
        """Stop serving. Transactions under way come about or do not."""
        self.is_down = True
        for call in list(self._under_way):
            self._lose(call)
            self._answer(call, _Failed(DatabaseUnavailable("the server went away")), 0.0)

    def come_back(self) -> None:
        self.is_down = False

    def died(self, process: Process) -> None:
        """The process's connections are cut."""
        for call in list(self._under_way):
            if call.process is process:
                self._lose(call)

    def _lose(self, call: _Call) -> None:
        """The call's connection is lost: what has not been told to commit cannot, what has may."""
        may_commit = call.shard is None or self._locks.setdefault(call.shard, _Lock()).holder is call
        if not may_commit or self._chance.random() < 0.5:
            self._cut(call)

    # --- a call's way -------------------------------------------------------------------------------

    def called(self, name: str, *arguments: Any) -> Any:
        process = self._loop.current_process()
        answer = block(lambda wake: self._receive(name, arguments, process, wake))
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def _receive(self, name: str, arguments: tuple[Any, ...], process: Process, wake: Wake) -> None:
        fate = self._fate(name)
        call = _Call(name, arguments, process, wake, fate, self._shard_of(name, arguments))
        if self.is_down or fate == "refused":
            # A closed port answers at once, a dead machine not at all.
            wait = self._chance.choice((0.0, 0.001, 5.0))
            self._answer(call, _Failed(DatabaseUnavailable("no connection")), wait)
            return
        self._under_way.append(call)
        self._loop.call_outside(self._moment(), self._begin, call)

    def _begin(self, call: _Call) -> None:
        if call.is_over:
            return
        if call.shard is None:
            self._loop.call_outside(self._moment(), self._carry_out, call)
            return
        lock = self._locks.setdefault(call.shard, _Lock())
        if lock.holder is None:
            self._hold(lock, call)
        else:
            lock.waiting.append(call)
            self._loop.call_outside(LOCK_WAIT, self._give_lock_up, lock, call)

    def _hold(self, lock: _Lock, call: _Call) -> None:
        lock.holder = call
        seconds = self._moment()
        if call.fate == "late":
            # The client hears of a lost connection while its transaction goes on.
            self._answer(call, _Failed(DatabaseUnavailable("lost connection during the query")), 0.0)
            seconds += self._chance.uniform(0, 6)
        self._loop.call_outside(seconds, self._carry_out, call)

    def _give_lock_up(self, lock: _Lock, call: _Call) -> None:
        if call in lock.waiting:
            lock.waiting.remove(call)
            self._answer(call, _Failed(DatabaseUnavailable("Lock wait timeout exceeded")), 0.0)
            self._end(call)

    def _carry_out(self, call: _Call) -> None:
        if call.is_over:
            return
        if call.fate == "cut":
            self._answer(call, _Failed(DatabaseUnavailable("connection cut")), self._moment())
            self._cut(call)
            return
        if call.fate == "error":
            self._answer(call, _Failed(_met(self._chance.choice(OUTAGE_ERRORS))), self._moment())
            self._cut(call)
            return
        answer: Any
        try:
            answer = getattr(self._inner, call.name)(*call.arguments)
        except Exception as error:
            answer = _Failed(error)
        if call.name in _WRITES:
            result = answer.error if isinstance(answer, _Failed) else answer
            self._on_written(call.name, call.arguments, result)
        if call.fate == "lost":
            answer = _Failed(DatabaseUnavailable("the answer was lost"))
            self._answer(call, answer, self._chance.choice((0.0, 0.5, 15.0)))
        else:
            self._answer(call, answer, self._moment())
        self._end(call)

    def _cut(self, call: _Call) -> None:
        """Roll the call's transaction back."""
        if not call.is_over:
            self._trace.note("database", f"{call.name} of {call.process.name} is rolled back")
            self._end(call)

    def _end(self, call: _Call) -> None:
        if call.is_over:
            return
        call.is_over = True
        self._under_way.remove(call)
        if call.shard is None:
            return
        lock = self._locks.setdefault(call.shard, _Lock())
        if call in lock.waiting:
            lock.waiting.remove(call)
        if lock.holder is call:
            lock.holder = None
            if lock.waiting:
                self._hold(lock, lock.waiting.popleft())

    def _answer(self, call: _Call, answer: Any, seconds: float) -> None:
        if call.is_answered:
            return
        call.is_answered = True
        if isinstance(answer, _Failed):
            self._trace.note("database", f"{call.name} of {call.process.name} hears: {answer.error!r}")
        self._loop.call_outside(seconds, call.wake, answer)

    # --- chance -------------------------------------------------------------------------------------

    def _fate(self, name: str) -> str:
        if self.is_calm or self._chance.random() >= self._weather.bad_calls:
            return "good"
        if name in _WRITES:
            return self._chance.choice(("refused", "cut", "lost", "late", "error"))
        return self._chance.choice(("refused", "lost", "error"))

    def _moment(self) -> float:
        if not self.is_calm and self._chance.random() < self._weather.slow_calls:
            return self._chance.uniform(0, 4)
        return self._chance.uniform(0.0002, 0.004)

    def _shard_of(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        if name not in _OF_A_SHARD:
            return None
        if name == "read_back":
            changes = arguments[0]
            return shard_of(changes[0].job.customer_id, self._weather.shards) if changes else None
        shard: int = arguments[0]
        return shard


def _met(code: int) -> Exception:
    """What becomes of an error with which the server answers a statement."""
    try:
        with translate_errors():
            raise OperationalError("", None, pymysql.err.OperationalError(code, "an error"))
    except Exception as error:
        return error


class _Client:
    def __init__(self, server: DatabaseServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._server.called, name)
