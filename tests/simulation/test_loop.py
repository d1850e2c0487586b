"""The simulated loop does what asyncio does, without time, threads or mercy."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.simulation.loop import START, Process, SimulatedLoop, Stuck, Unhandled, pause


@pytest.fixture
def loop() -> SimulatedLoop:
    return SimulatedLoop(Random(1))


def test_time_jumps_to_the_next_timer(loop: SimulatedLoop) -> None:
    began = time.monotonic()

    async def sleeps() -> float:
        await asyncio.sleep(3600)
        return loop.time() - START

    assert loop.run(sleeps()) == 3600
    assert time.monotonic() - began < 10


def test_a_timeout_ends_what_takes_longer(loop: SimulatedLoop) -> None:
    async def waits() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3)
        return loop.time() - START

    assert loop.run(waits()) == 5


def test_a_call_in_a_thread_blocks_nobody_else(loop: SimulatedLoop) -> None:
    told: list[str] = []

    def call() -> str:
        told.append("begins")
        pause(2)
        told.append("ends")
        return "answer"

    async def both() -> str:
        answer = asyncio.create_task(asyncio.to_thread(call))
        await asyncio.sleep(1)
        told.append("meanwhile")
        return await answer

    assert loop.run(both()) == "answer"
    assert told == ["begins", "meanwhile", "ends"]


def test_an_error_in_a_thread_reaches_its_caller(loop: SimulatedLoop) -> None:
    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    loop.run(fails())


def test_an_executor_has_as_many_threads_as_it_says(loop: SimulatedLoop) -> None:
    with ThreadPoolExecutor(2) as executor:

        async def many() -> float:
            calls = [loop.run_in_executor(executor, pause, 1) for _ in range(6)]
            await asyncio.gather(*calls)
            return loop.time() - START

        assert loop.run(many()) == 3


def test_a_killed_process_never_runs_again_not_even_to_tidy_up(loop: SimulatedLoop) -> None:
    told: list[str] = []
    process = Process("victim")

    def call() -> None:
        pause(2)
        told.append("thread")

    async def victim() -> None:
        try:
            await asyncio.to_thread(call)
        finally:
            told.append("tidied up")

    async def murder() -> None:
        dying = asyncio.create_task(loop.outlived(process, victim()))
        await asyncio.sleep(1)
        loop.kill(process)
        with pytest.raises(ConnectionError):
            await dying
        await asyncio.sleep(100)
        assert told == []
        await loop.bury([process])

    loop.run(murder())


def test_the_order_of_processes_is_drawn_and_that_within_one_is_kept() -> None:
    def order(seed: int) -> list[str]:
        loop = SimulatedLoop(Random(seed))
        told: list[str] = []

        async def tells(name: str) -> None:
            for number in range(3):
                told.append(f"{name}{number}")
                await asyncio.sleep(0)

        async def all_of_them() -> None:
            await asyncio.wait([loop.spawn(Process(name), tells(name)) for name in "ab"])

        loop.run(all_of_them())
        return told

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(20)}) > 1
    for seed in range(20):
        assert [name for name in order(seed) if name[0] == "a"] == ["a0", "a1", "a2"]


def test_what_nobody_catches_ends_the_run(loop: SimulatedLoop) -> None:
    async def careless() -> None:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(Unhandled, match="ZeroDivisionError"):
        loop.run(careless())
    loop.failure = None
    loop.run(loop.bury([]))


def test_a_run_in_which_nothing_can_happen_any_more_ends(loop: SimulatedLoop) -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        loop.run(waits())
    loop.run(loop.bury([]))
