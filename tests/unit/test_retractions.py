"""Jobs whose clients were told that they are not kept."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from avatarforge.background import Backoff
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.tracker.retractions import Retractions
from tests.waiting import wait_until


class Bench:
    def __init__(self) -> None:
        self.away = 0
        self.breaks = ""
        """The job that breaks the tracker's answer."""
        self.asked: list[str] = []
        self.retractions = Retractions(self._retract)
        self.retractions.BACKOFF = Backoff(0.01, 0.02)

    async def _retract(self, customer_id: str, job_id: str) -> None:
        if self.away:
            self.away -= 1
            raise TrackerUnavailable("switched off by the test")
        if job_id == self.breaks:
            raise ValueError("a fault of ours")
        self.asked.append(f"{customer_id}/{job_id}")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.retractions.close()


async def test_a_tracker_that_is_away_is_asked_until_it_answers(bench: Bench) -> None:
    bench.away = 3
    bench.retractions.add("ana", "1")
    bench.retractions.add("ben", "2")
    await wait_until(lambda: bench.asked == ["ana/1", "ben/2"])


async def test_what_comes_after_a_pause_is_asked_for_too(bench: Bench) -> None:
    bench.retractions.add("ana", "1")
    await wait_until(lambda: bench.asked == ["ana/1"])
    bench.retractions.add("ana", "2")
    await wait_until(lambda: bench.asked == ["ana/1", "ana/2"])


async def test_one_that_breaks_the_answer_does_not_hold_the_others_up(bench: Bench) -> None:
    bench.breaks = "1"
    bench.retractions.add("ana", "1")
    bench.retractions.add("ben", "2")
    await wait_until(lambda: bench.asked == ["ben/2"])


async def test_of_too_many_the_first_ones_are_forgotten(bench: Bench) -> None:
    bench.away = 1
    for number in range(Retractions.MAX_WAITING + 1):
        bench.retractions.add("ana", str(number))
    await wait_until(lambda: len(bench.asked) == Retractions.MAX_WAITING)
    assert bench.asked[0] == "ana/1"


async def test_closing_ends_the_asking(bench: Bench) -> None:
    bench.away = 10**6
    bench.retractions.add("ana", "1")
    await wait_until(lambda: bench.away < 10**6)
    await bench.retractions.close()
    left = bench.away
    await asyncio.sleep(0.05)
    assert bench.away == left
