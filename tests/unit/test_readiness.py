"""What waits for a tracker that has not taken its shard over yet."""

import asyncio
import time

import pytest

from avatarforge.domain.errors import DatabaseUnavailable, TrackerUnavailable
from avatarforge.tracker.readiness import Readiness


@pytest.mark.parametrize(
    ("outage", "told"), [(None, TrackerUnavailable), (DatabaseUnavailable("no route"), DatabaseUnavailable)]
)
async def test_what_stands_in_the_way_is_told_when_patience_ends(
    outage: DatabaseUnavailable | None, told: type[Exception]
) -> None:
    readiness = Readiness(0.01, lambda: outage)
    with pytest.raises(told):
        await readiness.in_time()
    readiness.begin()
    await readiness.in_time()


@pytest.mark.parametrize("turns", range(6))
async def test_who_is_cancelled_as_the_answer_comes_is_cancelled(turns: int) -> None:
    readiness = Readiness(10, lambda: None)
    waiting = asyncio.create_task(readiness.in_time())
    await asyncio.sleep(0)
    readiness.begin()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert turns, "at first it waits"
        assert waiting.exception() is None


async def test_a_tracker_that_is_ready_as_patience_ends_is_ready() -> None:
    readiness = Readiness(0.02, lambda: None)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(readiness.in_time())
    loop.call_later(0.01, readiness.begin)
    # Busy until both are due.
    loop.call_soon(time.sleep, 0.05)
    await waiting
