"""Replicas with slots: they work, fail, fall silent, die, give work back, and go on when they should not."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import AvatarImage, JobError
from avatarforge.storage.keys import avatar_key
from tests.factories import an_image, an_outcome
from tests.simulation.loop import NOBODYS, Process, SimulatedLoop
from tests.simulation.storage import SimulatedStorage
from tests.simulation.trace import Trace
from tests.simulation.weather import GENERATION_FAULTS, Weather


class ReplicaLost(Exception):
    """As the transport tells it."""


@dataclass(eq=False, slots=True)
class _Replica:
    name: str
    free: int
    generations: "list[_Generation]" = field(default_factory=list)
    is_alive: bool = True


@dataclass(eq=False, slots=True)
class _Slot:
    replica: _Replica
    process: Process
    generation: "_Generation | None" = None
    is_free: bool = False


class ReplicaPool:
    """Some replicas of one deployment, for all trackers."""

    def __init__(
        self,
        name: str,
        loop: SimulatedLoop,
        storage: SimulatedStorage,
        weather: Weather,
        chance: Random,
        trace: Trace,
    ) -> None:
        self.name = name
        self._loop = loop
        self.storage = storage
        self.weather = weather
        self.chance = chance
        self._trace = trace
        self._numbers = itertools.count(1)
        self._waiting: list[tuple[Process, asyncio.Future[_Slot]]] = []
        self._held: list[_Slot] = []
        self._replicas: list[_Replica] = []
        self.is_calm = False
        for _ in range(weather.replicas):
            self._add()

    # --- what a tracker sees ------------------------------------------------------------------------

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator["_Reservation"]:
        slot = await self._granted()
        try:
            yield _Reservation(self, slot)
        finally:
            if slot.generation is None:
                self._loop.call_outside(self.moment(), self._leave, slot)

    async def _granted(self) -> _Slot:
        await asyncio.sleep(self.moment())
        if not self.is_calm and self.chance.random() < self.weather.bad_reservations:
            raise ReplicaLost("the router knows no replica")
        future: asyncio.Future[_Slot] = self._loop.create_future()
        self._waiting.append((self._loop.current_process(), future))
        self._grant()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._leave(future.result())
            raise

    # --- faults ---------------------------------------------------------------------------------------

    def kill_one(self) -> None:
        """A replica dies, with all that it does; another takes its place later."""
        if not self._replicas:
            return
        replica = self.chance.choice(self._replicas)
        self._replicas.remove(replica)
        replica.is_alive = False
        self.note(f"{replica.name} dies")
        # A process that ends is noticed at once, a machine that is gone is not.
        is_noticed = self.chance.random() < 0.7
        for generation in list(replica.generations):
            generation.break_off(ReplicaLost("the actor died") if is_noticed else None)
        self._loop.call_outside(self.chance.uniform(0.5, 10), self._add)

    def drain_one(self) -> None:
        """A replica takes nothing any more and gives back what it has; another takes its place later."""
        if not self._replicas:
            return
        replica = self.chance.choice(self._replicas)
        self._replicas.remove(replica)
        self.note(f"{replica.name} is drained")
        for generation in list(replica.generations):
            generation.give_back()
        self._loop.call_outside(self.chance.uniform(0.5, 5), self._add)

    def died(self, process: Process) -> None:
        """A tracker died: its reservations run out, its calls are cancelled after a while."""
        self._waiting = [(owner, future) for owner, future in self._waiting if owner is not process]
        for slot in self._held:
            if slot.process is not process:
                continue
            if slot.generation is None:
                self._loop.call_outside(self.chance.uniform(0, 3), self._leave, slot)
            else:
                self._loop.call_outside(self.chance.uniform(0, 8), slot.generation.stop)

    @property
    def is_idle(self) -> bool:
        """Whether every slot is free."""
        return not self._held

    # --- slots ----------------------------------------------------------------------------------------

    def _add(self) -> None:
        replica = _Replica(f"{self.name}-{next(self._numbers)}", self.weather.slots)
        self._replicas.append(replica)
        self._grant()

    def _grant(self) -> None:
        while True:
            waiting = [(owner, future) for owner, future in self._waiting if not future.done()]
            free = [replica for replica in self._replicas if replica.free]
            self._waiting = waiting
            if not waiting or not free:
                return
            owner, future = waiting.pop(self.chance.randrange(len(waiting)))
            replica = self.chance.choice(free)
            replica.free -= 1
            slot = _Slot(replica, owner)
            self._held.append(slot)
            self._waiting = waiting
            future.set_result(slot)

    def _leave(self, slot: _Slot) -> None:
        if slot.is_free:
            return
        slot.is_free = True
        self._held.remove(slot)
        slot.replica.free += 1
        self._grant()

    def begin(self, slot: _Slot, task: GenerationTask) -> "_Generation":
        assert slot.generation is None, "a reservation takes one task"
        slot.generation = generation = _Generation(self, slot, task)
        slot.replica.generations.append(generation)
        generation.begin()
        return generation

    def ended(self, generation: "_Generation") -> None:
        generation.slot.replica.generations.remove(generation)
        self._leave(generation.slot)

    def moment(self) -> float:
        return self.chance.uniform(0.0005, 0.01)

    def note(self, what: str) -> None:
        self._trace.note("replicas", what)

    @property
    def loop(self) -> SimulatedLoop:
        return self._loop


class _Reservation:
    def __init__(self, pool: ReplicaPool, slot: _Slot) -> None:
        self._pool = pool
        self._slot = slot
        self.replica_id = pool.name

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        generation = self._pool.begin(self._slot, task)
        try:
            while True:
                item = await generation.stream.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._pool.loop.call_outside(self._pool.moment(), generation.stop)


class _Generation:
    """One task in its replica. It goes on by itself, whoever has died at the stream's other end."""

    def __init__(self, pool: ReplicaPool, slot: _Slot, task: GenerationTask) -> None:
        self._pool = pool
        self.slot = slot
        self._task = task
        self.stream: asyncio.Queue[Any] = asyncio.Queue()
        self._arrives_at = 0.0
        self._is_wanted = True
        self._is_given_back = False
        self._work: asyncio.Task[None] | None = None
        chance = pool.chance
        self._fault = None
        if not pool.is_calm and chance.random() < pool.weather.bad_generations:
            usual = pool.weather.usual_fault
            self._fault = usual if chance.random() < 0.5 else chance.choice(GENERATION_FAULTS)

    def begin(self) -> None:
        self._note(f"starts in {self.slot.replica.name}" + (f" and {self._fault}" if self._fault else ""))
        loop = self._pool.loop
        self._work = loop.spawn(loop.outside, self._worked())
        # It ends also when the tracker that began it is dead.
        self._work.add_done_callback(lambda _: self._pool.ended(self), context=NOBODYS)

    def stop(self) -> None:
        """Nobody listens any more."""
        self._is_wanted = False
        if self._work is not None and self._fault == "falls silent":
            self._work.cancel()

    def break_off(self, error: Exception | None) -> None:
        if error is not None:
            self._send(error)
        if self._work is not None:
            self._work.cancel()

    def give_back(self) -> None:
        self._is_given_back = True

    async def _worked(self) -> None:
        chance = self._pool.chance
        steps = chance.randint(1, 4)
        broken_at = chance.randint(0, steps + len(self._task.missing) - 1)
        self._send(GenerationProgress())
        if self._task.original.key not in self._pool.storage.objects:
            self._end(_failure("original_missing"))
            return
        pace = 2.5 if self._fault == "is slow" else 0.3
        for step in range(steps + 1):
            if not await self._goes_on(pace, is_faulty=step == broken_at):
                return
            self._send(GenerationProgress(step=step, total_steps=steps))
        for place, index in enumerate(self._task.missing):
            if place and not await self._goes_on(pace, is_faulty=steps + place == broken_at):
                return
            if not await self._finished(index):
                return

    async def _goes_on(self, pace: float, *, is_faulty: bool) -> bool:
        """Work for a while; returns whether there is more to do."""
        chance = self._pool.chance
        await asyncio.sleep(chance.uniform(0.01, pace))
        if self._is_given_back:
            self._end(_failure("worker_drained", retryable=True, away_seconds=chance.choice((0.0, 1.0))))
            return False
        if not self._is_wanted and self._fault != "lingers":
            self._note("stops")
            return False
        return not (is_faulty and self._fault is not None and await self._breaks())

    async def _breaks(self) -> bool:
        match self._fault:
            case "dies":
                self._end(ReplicaLost("the stream was cut"))
            case "is cancelled":
                self._end(asyncio.CancelledError())
            case "ends early":
                self._end(None)
            case "falls silent":
                await asyncio.sleep(1000)
            case "refuses":
                self._end(_failure("no_steps"))
            case "gives back":
                self._end(_failure("device_failed", retryable=True))
            case "is away":
                seconds = self._pool.chance.uniform(0.1, 3)
                self._end(_failure("remote_unavailable", retryable=True, away_seconds=seconds))
            case _:
                return False
        return True

    async def _finished(self, index: int) -> bool:
        task, storage = self._task, self._pool.storage
        for _ in range(5):
            if storage.answers:
                break
            await asyncio.sleep(self._pool.chance.uniform(0.1, 1))
        else:
            self._end(_failure("storage_unavailable", retryable=True))
            return False
        has_several = task.parameters.variants > 1
        place = index if has_several else None
        key = avatar_key(task.customer_id, task.job_id, task.attempt, task.parameters.format, place)
        storage.store(key)
        self._note(f"made image {index}")
        await asyncio.sleep(self._pool.moment())
        avatar = an_image(key=key, media_type="image/png", width=64, height=64)
        image = AvatarImage(index=index, seed=index, style=None, stored=avatar)
        if index != task.missing[-1]:
            self._send(GenerationImage(image=image))
            return True
        outcome = an_outcome(avatar=avatar, backend=self._pool.name)
        self._end(GenerationFinished(outcome=outcome, image=image if has_several else None))
        return True

    def _end(self, last: Any) -> None:
        kind = last.error.code if isinstance(last, GenerationFailed) else type(last).__name__
        self._note(f"ends: {kind}")
        self._send(last)

    def _send(self, item: Any) -> None:
        """On its way to the tracker; nothing overtakes anything."""
        loop = self._pool.loop
        self._arrives_at = max(loop.time() + self._pool.moment(), self._arrives_at)
        loop.call_outside(self._arrives_at - loop.time(), self.stream.put_nowait, item)

    def _note(self, what: str) -> None:
        self._pool.note(f"{self._task.job_id} attempt {self._task.attempt} {what}")


def _failure(code: str, *, retryable: bool = False, away_seconds: float | None = None) -> GenerationFailed:
    error = JobError(code=code, message=f"It ends with {code}.")
    return GenerationFailed(error=error, retryable=retryable, away_seconds=away_seconds)
