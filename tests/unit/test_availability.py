"""What waits for a tracker that has not taken its shard over yet."""

import asyncio
import time

import pytest

from avatarforge.domain.errors import DatabaseUnavailable, TrackerUnavailable
from avatarforge.persistence.database import limit_wait
from avatarforge.tracker.availability import DatabaseOutage, StartupGate


@pytest.mark.parametrize(
    ("outage", "told"), [(None, TrackerUnavailable), (DatabaseUnavailable("no route"), DatabaseUnavailable)]
)
async def test_what_stands_in_the_way_is_told_when_patience_ends(
    outage: DatabaseUnavailable | None, told: type[Exception]
) -> None:
    meets = DatabaseOutage(0)
    if outage is not None:
        meets.begin(outage)
    gate = StartupGate(0.01, meets)
    with pytest.raises(told):
        await gate.wait_in_time()
    gate.open()
    await gate.wait_in_time()


@pytest.mark.parametrize("turns", range(6))
async def test_who_is_cancelled_as_the_answer_comes_is_cancelled(turns: int) -> None:
    gate = StartupGate(10, DatabaseOutage(0))
    waiting = asyncio.create_task(gate.wait_in_time())
    await asyncio.sleep(0)
    gate.open()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert turns, "at first it waits"
        assert waiting.exception() is None


async def test_a_tracker_that_is_ready_as_patience_ends_is_ready() -> None:
    gate = StartupGate(0.02, DatabaseOutage(0))
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(gate.wait_in_time())
    loop.call_later(0.01, gate.open)
    # Busy until both are due.
    loop.call_soon(time.sleep, 0.05)
    await waiting


async def test_only_a_wait_that_was_too_long_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise TimeoutError("of another kind")

    with pytest.raises(TimeoutError, match="of another kind"):
        await limit_wait(fail())
    monkeypatch.setattr("avatarforge.persistence.database.DATABASE_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(DatabaseUnavailable) as silence:
        await limit_wait(asyncio.Event().wait())
    assert silence.value.reason == "no answer within 0.01 seconds"
