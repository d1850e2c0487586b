"""Trackers as processes that live and die, and the calls that reach them or do not."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from avatarforge.domain.errors import AvatarForgeError
from avatarforge.tracker.actor import RESTART_DELAY_SECONDS, JobTrackerActor
from avatarforge.tracker.tracker import JobTracker
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.trace import Trace

MakeTracker = Callable[[int, Process, Callable[[Exception], None], str], JobTracker]
"""Shard, process, whoever hears that the tracker is broken, and its cluster. Called in the process."""


@dataclass(eq=False, slots=True)
class Life:
    """One start of a shard's tracker."""

    number: int
    shard: int
    process: Process
    tracker: JobTracker | None = None
    actor: JobTrackerActor | None = None
    is_constructed: asyncio.Event = field(default_factory=asyncio.Event)
    calls: "dict[asyncio.Future[Any], str]" = field(default_factory=dict)
    """Whoever waits for an answer, and for which."""


class Cluster:
    """Keeps a tracker for every shard alive."""

    LOST = 0.05
    """Share of a living tracker's answers that are lost with their connection (`ActorUnavailableError`)."""

    def __init__(
        self,
        loop: SimulatedLoop,
        shards: int,
        make_tracker: MakeTracker,
        chance: Random,
        trace: Trace,
        on_death: Callable[[Process], None],
        on_fault: Callable[[str], None],
        cluster_id: str = "first",
    ) -> None:
        """`on_fault` hears of errors that a tracker must not raise."""
        self.cluster_id = cluster_id
        self.is_over = False
        self.loop = loop
        self.chance = chance
        self._shards = shards
        self._make_tracker = make_tracker
        self._trace = trace
        self._on_death = on_death
        self._on_fault = on_fault
        self._numbers = itertools.count(1)
        self.lives: list[Life] = []
        self._starting: set[int] = set()
        for shard in range(shards):
            self.start(shard)

    def current(self, shard: int) -> Life | None:
        """The newest living tracker of the shard."""
        return next((life for life in reversed(self.alive) if life.shard == shard), None)

    @property
    def alive(self) -> list[Life]:
        return [life for life in self.lives if life.process.is_alive]

    # --- life and death -------------------------------------------------------------------------------

    def start(self, shard: int) -> Life:
        number = next(self._numbers)
        life = Life(number, shard, Process(f"{self.cluster_id} tracker {number}"))
        self.lives.append(life)
        self._starting.discard(shard)
        self._trace.note("cluster", f"{life.process.name} starts for shard {shard}")
        self.loop.spawn(life.process, self._lived(life))
        return life

    def kill(self, life: Life) -> None:
        if not life.process.is_alive:
            return
        self._trace.note("cluster", f"{life.process.name} dies")
        self.loop.kill(life.process)
        self._on_death(life.process)
        for future in list(life.calls):
            self.loop.call_outside(self.chance.uniform(0, 0.5), _fail, future)
        if self.current(life.shard) is None and life.shard not in self._starting and not self.is_over:
            self._starting.add(life.shard)
            self.loop.call_outside(self.chance.uniform(0.1, 6), self._start_again, life.shard)

    def _start_again(self, shard: int) -> None:
        if not self.is_over:
            self.start(shard)

    def end(self) -> None:
        """Nothing of the cluster is left, nor comes back."""
        self.is_over = True
        for life in self.alive:
            self.kill(life)

    async def _lived(self, life: Life) -> None:
        life.tracker = self._make_tracker(
            life.shard, life.process, lambda error: self._give_up(life, error), self.cluster_id
        )
        # The real one's answers, without its constructor: that connects to the real world.
        life.actor = object.__new__(JobTrackerActor)
        life.actor._tracker = life.tracker
        life.is_constructed.set()
        try:
            await life.tracker.start()
        except Exception as error:
            self._give_up(life, error)
        else:
            self._trace.note("cluster", f"{life.process.name} is ready")

    def _give_up(self, life: Life, error: Exception) -> None:
        self._trace.note("cluster", f"{life.process.name} gives up: {error!r}")
        if not isinstance(error, AvatarForgeError):
            self._on_fault(f"{life.process.name} broke: {error!r}")
        self.loop.call_outside(RESTART_DELAY_SECONDS, self.kill, life)

    # --- calls ----------------------------------------------------------------------------------------

    def handles(self) -> "list[Handle]":
        """A caller's handles of all shards' trackers."""
        return [Handle(self, shard) for shard in range(self._shards)]

    def reach(self, life: Life, method: str, arguments: Sequence[Any], future: "asyncio.Future[Any]") -> None:
        """The call arrives."""
        if not life.process.is_alive:
            _fail(future)
            return
        life.calls[future] = method
        self.loop.spawn(life.process, self._answered(life, method, arguments, future))

    async def _answered(
        self, life: Life, method: str, arguments: Sequence[Any], future: "asyncio.Future[Any]"
    ) -> None:
        # An actor's constructor comes first.
        await life.is_constructed.wait()
        answer: Any
        try:
            answer = await getattr(life.actor, method)(*arguments)
        except Exception as error:
            if not isinstance(error, AvatarForgeError):
                self._on_fault(f"{method} of {life.process.name} broke: {error!r}")
            answer = _Raised(RayTaskError(method, "", error).as_instanceof_cause())
        self.loop.call_outside(self.chance.uniform(0.0005, 0.01), self._deliver, life, future, answer)

    def _deliver(self, life: Life, future: "asyncio.Future[Any]", answer: Any) -> None:
        # A process that died after it had sent its answer: the call has failed already, or fails soon.
        if life.process.is_alive and life.calls.pop(future, None) is not None and not future.done():
            if self.chance.random() < self.LOST:
                _fail(future)
            elif isinstance(answer, _Raised):
                _fail(future, answer.error)
            else:
                future.set_result(answer)


class Handle:
    """An actor handle. It never goes back to an earlier life than the one it has spoken to."""

    def __init__(self, cluster: Cluster, shard: int) -> None:
        self.cluster = cluster
        self._shard = shard
        self._life: Life | None = None
        self._moves_at = 0.0

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self, method)

    def call(self, method: str, arguments: Sequence[Any]) -> "asyncio.Future[Any]":
        loop, chance = self.cluster.loop, self.cluster.chance
        future: asyncio.Future[Any] = loop.create_future()
        life = self._living()
        if life is not None:
            loop.call_outside(
                chance.uniform(0.0005, 0.01), self.cluster.reach, life, method, arguments, future
            )
        elif chance.random() < 0.5:
            loop.call_outside(chance.uniform(0, 0.2), _fail, future)
        else:
            loop.call_outside(0.1, self._again, method, arguments, future)
        return future

    def _again(self, method: str, arguments: Sequence[Any], future: "asyncio.Future[Any]") -> None:
        """The call waits for an actor that is starting."""
        if future.done():
            return
        if (life := self._living()) is None:
            self.cluster.loop.call_outside(0.1, self._again, method, arguments, future)
        else:
            self.cluster.reach(life, method, arguments, future)

    def _living(self) -> Life | None:
        """Whom the caller believes to be the tracker; of a new one it hears a little late."""
        now = self.cluster.loop.time()
        newest = self.cluster.current(self._shard)
        known = self._life
        if known is None or not known.process.is_alive:
            self._life = newest
        elif newest is not known:
            if not self._moves_at:
                self._moves_at = now + self.cluster.chance.uniform(0, 6)
            if now >= self._moves_at:
                self._life, self._moves_at = newest, 0.0
        return self._life


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *arguments: Any) -> "asyncio.Future[Any]":
        return self._handle.call(self._name, arguments)


@dataclass(slots=True)
class _Raised:
    error: Exception


def _fail(future: "asyncio.Future[Any]", error: Exception | None = None) -> None:
    if not future.done():
        future.set_exception(error or RayActorError())
        # A caller that has gone away must not turn this into "exception was never retrieved".
        future.exception()
