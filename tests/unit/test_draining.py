"""A replica that is about to be stopped, and slots that nobody uses."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from avatarforge.diffusion.replica.draining import GIVEN_BACK, DrainMonitor
from avatarforge.domain.generations import GenerationFinished, GenerationProgress, GenerationUpdate
from tests.factories import an_outcome


class FakeInternals:
    def __init__(self) -> None:
        self.is_stopping = False
        self.stop_timeout_seconds = 20.0
        self.reserved_slots: set[str] = set()

    def release(self, slot: str) -> None:
        self.reserved_slots.discard(slot)


class Bench:
    def __init__(self) -> None:
        self.internals = FakeInternals()
        self.time = 0.0
        self.monitor = DrainMonitor(self.internals, lambda: self.time)
        self.closed = False

    async def updates(self, steps: int) -> AsyncGenerator[GenerationUpdate, None]:
        try:
            yield GenerationProgress()
            for step in range(1, steps + 1):
                yield GenerationProgress(step=step, total_steps=steps)
            yield GenerationFinished(outcome=an_outcome())
        finally:
            self.closed = True


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_task_that_waits_is_given_back_at_once(bench: Bench) -> None:
    bench.internals.is_stopping = True
    await bench.monitor.check()
    assert [update async for update in bench.monitor.guard(bench.updates(3))] == [GIVEN_BACK]
    assert bench.closed


async def test_a_task_that_runs_may_end(bench: Bench) -> None:
    async with aclosing(bench.monitor.guard(bench.updates(3))) as updates:
        told = [await anext(updates), await anext(updates)]
        bench.internals.is_stopping = True
        await bench.monitor.check()
        bench.time = 11.9
        told += [update async for update in updates]
    assert isinstance(told[-1], GenerationFinished)


async def test_a_task_that_runs_for_too_long_is_given_back_before_the_replica_is_killed(bench: Bench) -> None:
    async with aclosing(bench.monitor.guard(bench.updates(100))) as updates:
        await anext(updates)
        await anext(updates)
        bench.internals.is_stopping = True
        await bench.monitor.check()
        assert (await anext(updates)) != GIVEN_BACK
        bench.time = 12.0
        assert [update async for update in updates] == [GIVEN_BACK]
    assert bench.closed


async def test_a_result_is_never_given_back(bench: Bench) -> None:
    async with aclosing(bench.monitor.guard(bench.updates(0))) as updates:
        await anext(updates)
        bench.internals.is_stopping = True
        await bench.monitor.check()
        bench.time = 100.0
        assert isinstance(await anext(updates), GenerationFinished)


async def test_a_slot_is_freed_when_it_was_reserved_for_too_long_without_a_break(bench: Bench) -> None:
    bench.internals.reserved_slots = {"abandoned", "used"}
    await bench.monitor.check()
    bench.internals.reserved_slots = {"abandoned", "new"}
    bench.time = DrainMonitor.SLOT_TIMEOUT_SECONDS - 0.1
    await bench.monitor.check()
    assert bench.internals.reserved_slots == {"abandoned", "new"}
    bench.time = DrainMonitor.SLOT_TIMEOUT_SECONDS
    await bench.monitor.check()
    assert bench.internals.reserved_slots == {"new"}
