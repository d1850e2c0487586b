"""A replica's reports on their way to the trackers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from avatarforge.diffusion.replica.reporter import Reporter
from avatarforge.domain.replicas import ReplicaReport
from tests.factories import a_report
from tests.waiting import wait_until


class Tracker:
    """Notes what it hears; away as long as the test says."""

    def __init__(self, last_good: str | None = None) -> None:
        self.heard: list[ReplicaReport] = []
        self.last_good = last_good
        self.away = False

    async def __call__(self, report: ReplicaReport) -> str | None:
        if self.away:
            raise ConnectionError("switched off by the test")
        self.heard.append(report)
        return self.last_good


class Quick(Reporter):
    INTERVAL_SECONDS = 0.02
    TIMEOUT_SECONDS = 0.05


class Bench:
    def __init__(self) -> None:
        self.trackers = [Tracker("first"), Tracker()]
        self.changed = asyncio.Event()
        self.report = a_report()
        self.reporter = Quick(self.trackers, lambda: self.report, self.changed)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.reporter.close()


async def test_every_tracker_hears_again_and_again(bench: Bench) -> None:
    bench.reporter.start()
    await wait_until(lambda: all(len(tracker.heard) >= 3 for tracker in bench.trackers))
    assert bench.trackers[1].heard[0] == a_report()


async def test_a_change_is_reported_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quick, "INTERVAL_SECONDS", 60)
    bench.reporter = Quick(bench.trackers, lambda: bench.report, bench.changed)
    bench.reporter.start()
    await wait_until(lambda: bench.trackers[0].heard)
    bench.report = a_report(active=3)
    bench.changed.set()
    await wait_until(lambda: a_report(active=3) in bench.trackers[0].heard)


async def test_a_tracker_that_is_away_keeps_nobody_else_from_hearing(bench: Bench) -> None:
    bench.trackers[0].away = True
    bench.reporter.start()
    await wait_until(lambda: len(bench.trackers[1].heard) >= 2)
    bench.trackers[0].away = False
    await wait_until(lambda: bench.trackers[0].heard)


async def test_a_tracker_that_never_answers_is_not_waited_for(bench: Bench) -> None:
    async def silent(report: ReplicaReport) -> str | None:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    bench.reporter = Quick([silent, bench.trackers[1]], lambda: bench.report)
    bench.reporter.start()
    await wait_until(lambda: len(bench.trackers[1].heard) >= 2)
    assert await bench.reporter.wait_for_last_good(0.01) is None


async def test_figures_that_cannot_be_had_end_nothing(bench: Bench) -> None:
    reports = iter([None, a_report()])

    def report() -> ReplicaReport:
        given = next(reports, a_report())
        if given is None:
            raise RuntimeError("the device is gone")
        return given

    bench.reporter = Quick([bench.trackers[0]], report)
    bench.reporter.start()
    await wait_until(lambda: bench.trackers[0].heard)


async def test_the_last_good_model_is_waited_for(bench: Bench) -> None:
    bench.trackers[0].away = True
    bench.reporter.start()
    asked = asyncio.create_task(bench.reporter.wait_for_last_good(10))
    await wait_until(lambda: bench.trackers[1].heard)
    assert not asked.done()
    bench.trackers[0].away = False
    assert await asked == "first"
