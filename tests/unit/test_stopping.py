"""A replica that is about to be stopped, and slots that nobody uses."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from avatarforge.diffusion.stopping import STOPPING, Stopping
from avatarforge.domain.generations import GenerationFinished, GenerationProgress, GenerationUpdate
from tests.factories import an_outcome


class FakeShell:
    def __init__(self) -> None:
        self.is_stopping = False
        self.seconds_to_stop = 20.0
        self.reserved: set[str] = set()

    def release(self, reserved: str) -> None:
        self.reserved.discard(reserved)


class Bench:
    def __init__(self) -> None:
        self.shell = FakeShell()
        self.time = 0.0
        self.stopping = Stopping(self.shell, lambda: self.time)
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
    bench.shell.is_stopping = True
    bench.stopping.look()
    assert [update async for update in bench.stopping.heeding(bench.updates(3))] == [STOPPING]
    assert bench.closed


async def test_a_task_that_runs_may_end(bench: Bench) -> None:
    async with aclosing(bench.stopping.heeding(bench.updates(3))) as updates:
        told = [await anext(updates), await anext(updates)]
        bench.shell.is_stopping = True
        bench.stopping.look()
        bench.time = 11.9
        told += [update async for update in updates]
    assert isinstance(told[-1], GenerationFinished)


async def test_a_task_that_runs_for_too_long_is_given_back_before_the_replica_is_killed(bench: Bench) -> None:
    async with aclosing(bench.stopping.heeding(bench.updates(100))) as updates:
        await anext(updates)
        await anext(updates)
        bench.shell.is_stopping = True
        bench.stopping.look()
        assert (await anext(updates)) != STOPPING
        bench.time = 12.0
        assert [update async for update in updates] == [STOPPING]
    assert bench.closed


async def test_a_result_is_never_given_back(bench: Bench) -> None:
    async with aclosing(bench.stopping.heeding(bench.updates(0))) as updates:
        await anext(updates)
        bench.shell.is_stopping = True
        bench.stopping.look()
        bench.time = 100.0
        assert isinstance(await anext(updates), GenerationFinished)


def test_a_slot_is_freed_when_it_was_reserved_for_too_long_without_a_break(bench: Bench) -> None:
    bench.shell.reserved = {"abandoned", "used"}
    bench.stopping.look()
    bench.shell.reserved = {"abandoned", "new"}
    bench.time = Stopping.ABANDONED - 0.1
    bench.stopping.look()
    assert bench.shell.reserved == {"abandoned", "new"}
    bench.time = Stopping.ABANDONED
    bench.stopping.look()
    assert bench.shell.reserved == {"new"}
