import asyncio
import itertools
import threading

import pytest

from avatarforge.background import (
    BackgroundTasks,
    Backoff,
    BlockingPool,
    PeriodicTask,
    retry,
    run_periodically,
    wait_for_event,
)

SOON = Backoff(0.001, 0.002)


class Flaky:
    """Raises the errors, one at a call, and then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_delays_double_up_to_the_longest() -> None:
    assert list(itertools.islice(Backoff(0.5, 3).delays(), 5)) == [0.5, 1, 2, 3, 3]


def test_jitter_shortens_a_delay_by_a_half_at_most() -> None:
    delays = itertools.islice(Backoff(2, 2, has_jitter=True).delays(), 100)
    assert all(1 <= delay <= 2 for delay in delays)


async def test_a_call_is_repeated_while_it_raises_the_errors() -> None:
    call, told = Flaky(ConnectionError("first"), ConnectionError("second")), []
    answer = await retry(
        call, ConnectionError, SOON, on_error=lambda error, delay: told.append((str(error), delay))
    )
    assert (answer, told) == ("done", [("first", 0.001), ("second", 0.002)])


async def test_other_errors_end_the_retries() -> None:
    call = Flaky(ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        await retry(call, ConnectionError, SOON)
    assert call.calls == 1


async def test_the_error_is_raised_when_the_next_try_would_come_too_late() -> None:
    call = Flaky(*(ConnectionError("away") for _ in range(1000)))
    with pytest.raises(ConnectionError):
        await retry(call, ConnectionError, SOON, timeout_seconds=0.01)
    assert 1 < call.calls < 100


async def test_waiting_for_an_event_tells_whether_it_came() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.001)
    event.set()
    assert await wait_for_event(event, 10)


async def test_periodic_work_ends_with_its_error() -> None:
    call = Flaky()

    async def work() -> None:
        await call()
        if call.calls == 3:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_periodically(work, 0.001)
    assert call.calls == 3


async def test_waking_ends_the_pause() -> None:
    wake, rounds = asyncio.Event(), asyncio.Queue[None]()

    async def work() -> None:
        rounds.put_nowait(None)

    task = PeriodicTask("work", work, 3600, wake=wake)
    task.start()
    await rounds.get()
    wake.set()
    await rounds.get()
    await task.stop()


async def test_a_periodic_task_goes_on_after_an_error() -> None:
    call, is_done = Flaky(ValueError("once")), asyncio.Event()

    async def work() -> None:
        await call()
        is_done.set()

    task = PeriodicTask("work", work, 0.001)
    task.start()
    assert await wait_for_event(is_done, 10)
    await task.stop()
    calls = call.calls
    await asyncio.sleep(0.01)
    assert call.calls == calls


async def test_stopping_a_periodic_task_that_was_not_started_does_nothing() -> None:
    await PeriodicTask("work", Flaky(), 1).stop()


async def test_what_a_background_task_raises_is_reported() -> None:
    told: list[tuple[str, str]] = []
    tasks = BackgroundTasks(lambda name, error: told.append((name, str(error))))
    broken = tasks.spawn(Flaky(ValueError("broken"))(), "first")
    fine = tasks.spawn(Flaky()(), "second")
    await asyncio.wait({broken, fine})
    await asyncio.sleep(0)
    assert (told, await fine) == ([("first", "broken")], "done")


async def test_stopping_cancels_background_tasks() -> None:
    told: list[str] = []
    tasks = BackgroundTasks(lambda name, error: told.append(name))
    task = tasks.spawn(asyncio.sleep(3600), "asleep")
    await tasks.stop()
    assert task.cancelled()
    assert not told


async def test_blocking_calls_run_in_threads_of_that_name() -> None:
    pool = BlockingPool(2, "reader")

    def name(prefix: str, *, suffix: str) -> str:
        return prefix + threading.current_thread().name + suffix

    assert (await pool.run(name, "<", suffix=">")).startswith("<reader")
    await pool.close()


async def test_closing_a_pool_waits_for_its_calls() -> None:
    pool, may_end, ended = BlockingPool(1, "slow"), threading.Event(), []

    def call() -> None:
        may_end.wait(10)
        ended.append(True)

    running = asyncio.create_task(pool.run(call))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, may_end.set)
    await pool.close()
    assert ended
    await running
