import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from avatarforge.background import Backoff
from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.availability import DatabaseOutage
from avatarforge.tracker.jobs.committer import Committer
from tests.factories import NOON, a_job
from tests.twins import MemoryRecords
from tests.waiting import wait_until


def submission(job: ProfilePhotoJob) -> JobChange:
    return JobChange(job=job, event=job.event(EventKind.SUBMITTED, NOON))


def start(job: ProfilePhotoJob) -> JobChange:
    moved = job.start(NOON)
    return JobChange(job=moved, event=moved.event(EventKind.STARTED, NOON))


class Bench:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.records = MemoryRecords()
        self.committed: list[JobChange] = []
        self.rejected: list[JobChange] = []
        self.broken: list[Exception] = []
        self.outage = DatabaseOutage(0)
        self.committer = Committer(
            self.records,
            0,
            TrackerSettings(max_commit_batch=100, commit_timeout_seconds=0.3),
            self.outage,
            on_broken=self.broken.append,
            registry=MetricsRegistry(),
        )
        self.committer.subscribe(self.committed.append)
        self.committer.subscribe_rejected(self.rejected.append)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.committer.start()
    yield bench
    await bench.committer.stop()


async def test_a_submission_returns_with_its_seq(bench: Bench) -> None:
    first, second = a_job(), a_job()
    assert (await bench.committer.accept(submission(first))).job.seq == 1
    assert (await bench.committer.accept(submission(second))).event.seq == 2


async def test_submissions_at_the_same_time_share_transactions(bench: Bench) -> None:
    jobs = [a_job() for _ in range(150)]
    answers = await asyncio.gather(*(bench.committer.accept(submission(job)) for job in jobs))
    assert [answer.job.seq for answer in answers] == list(range(1, 151))
    assert len(bench.records.groups) < 10
    assert max(bench.records.groups) <= 100


async def test_a_lost_answer_is_read_back_and_not_repeated(bench: Bench) -> None:
    bench.records.lose_answers = 1
    job = a_job()
    assert (await bench.committer.accept(submission(job))).job.seq == 1
    assert len(bench.records.log) == 1


async def test_a_move_waits_for_the_database_and_a_submission_is_refused(bench: Bench) -> None:
    job = (await bench.committer.accept(submission(a_job()))).job
    bench.records.down = True
    move = asyncio.create_task(bench.committer.commit(start(job)))
    await wait_until(bench.outage.is_active)
    with pytest.raises(DatabaseUnavailable):
        await bench.committer.accept(submission(a_job()))
    assert not move.done()
    bench.records.down = False
    assert (await move).job.seq == 2
    assert len(bench.records.log) == 2
    assert (await bench.committer.accept(submission(a_job()))).job.seq == 3


async def test_a_submission_that_was_refused_is_not_written_later(bench: Bench) -> None:
    bench.records.down = True
    with pytest.raises(DatabaseUnavailable):
        await bench.committer.accept(submission(a_job()))
    bench.records.down = False
    await wait_until(lambda: not bench.outage.is_active())
    kept = await bench.committer.accept(submission(a_job()))
    assert [entry.job for entry in bench.records.log if not bench.rejected] == [kept.job]


async def test_a_refused_submission_that_was_committed_after_all_is_handed_over_for_erasure(
    bench: Bench,
) -> None:
    bench.records.lose_answers = 1
    commit: Callable[..., list[int]] = bench.records.commit

    def commit_then_vanish(*arguments: object) -> list[int]:
        try:
            return commit(*arguments)
        finally:
            bench.records.down = True

    bench.records.commit = commit_then_vanish  # type: ignore[method-assign]  # the fault comes after the write
    job = a_job()
    with pytest.raises(DatabaseUnavailable):
        await bench.committer.accept(submission(job))
    bench.records.commit = commit  # type: ignore[method-assign]  # the database is itself again
    bench.records.down = False
    [change] = await wait_until(lambda: bench.rejected)
    assert (change.job.job_id, change.job.seq) == (job.job_id, 1)


async def test_one_refused_change_does_not_take_the_others_with_it(bench: Bench) -> None:
    job = a_job()
    await bench.committer.accept(submission(job))
    again, other = bench.committer.accept(submission(job)), bench.committer.accept(submission(a_job()))
    refused, kept = await asyncio.gather(again, other, return_exceptions=True)
    assert isinstance(refused, ValueError)
    assert isinstance(kept, JobChange)


async def test_an_overtaken_committer_refuses_and_says_so(bench: Bench) -> None:
    bench.records.claim_shard(0)
    with pytest.raises(StaleEpoch):
        await bench.committer.accept(submission(a_job()))
    [error] = bench.broken
    assert isinstance(error, StaleEpoch)
    assert (error.epoch, error.current) == (1, 2)


async def test_a_commit_in_the_moment_of_the_time_out_is_not_rejected(bench: Bench) -> None:
    commit = bench.records.commit

    def slow(*arguments: Any) -> list[int]:
        seqs = commit(*arguments)
        # The answer reaches the loop when the time of everybody who waits has just run out.
        bench.loop.call_soon_threadsafe(time.sleep, 0.5)
        return seqs

    bench.records.commit = slow  # type: ignore[method-assign]  # the same, later
    jobs = [a_job() for _ in range(3)]
    answers = await asyncio.gather(
        *(bench.committer.accept(submission(job)) for job in jobs), return_exceptions=True
    )
    await wait_until(lambda: len(bench.records.log) == 3)
    kept = [answer for answer in answers if isinstance(answer, JobChange)]
    await wait_until(lambda: len(kept) + len(bench.rejected) == 3)


async def test_an_outage_ends_with_any_answer(bench: Bench) -> None:
    job = (await bench.committer.accept(submission(a_job()))).job
    bench.records.down = True
    again = asyncio.create_task(bench.committer.commit(submission(job)))
    await wait_until(bench.outage.is_active)
    bench.records.down = False
    committed = bench.records.read_back
    bench.records.read_back = lambda changes: None  # type: ignore[method-assign]  # so that the repeat is refused
    with pytest.raises(ValueError, match="in the log already"):
        await again
    bench.records.read_back = committed  # type: ignore[method-assign]  # as it was
    assert not bench.outage.is_active()


class Poison:
    """Jobs whose ends the database does not take, whatever the reason."""

    def __init__(self, bench: Bench) -> None:
        self.jobs: set[str] = set()
        self.tries = 0
        self._commit = bench.records.commit
        bench.records.commit = self.commit  # type: ignore[method-assign]  # the fault comes before the write

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        if any(change.job.job_id in self.jobs for change in changes):
            self.tries += 1
            raise DatabaseUnavailable("(1153, 'Got a packet bigger than max_allowed_packet bytes')")
        return self._commit(shard, epoch, changes)


@pytest.fixture
def poison(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Poison:
    monkeypatch.setattr(Committer, "BACKOFF", Backoff(0.001, 0.01))
    monkeypatch.setattr(Committer, "APART_BACKOFF", Backoff(0.01, 0.01))
    monkeypatch.setattr(Committer, "MIN_APART_SECONDS", 0.2)
    return Poison(bench)


async def test_a_change_that_always_fails_holds_up_no_other_and_is_refused_at_last(
    bench: Bench, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatabaseOutage, "MAX_SILENT_SECONDS", 0.0)
    job, other = a_job(), a_job()
    await asyncio.gather(*(bench.committer.accept(submission(known)) for known in (job, other)))
    poison.jobs.add(job.job_id)
    fails, passes = (asyncio.create_task(bench.committer.commit(start(known))) for known in (job, other))
    assert (await asyncio.wait_for(passes, 5)).event.seq == 3
    assert not bench.outage.is_active()
    assert not bench.outage.has_ended(), "it is not settled"

    async def go_on() -> None:
        while not fails.done():
            await bench.committer.accept(submission(a_job()))
            # The service takes uploads, and says so.
            assert bench.outage.describe() is None
            await asyncio.sleep(0.005)

    await asyncio.wait_for(go_on(), 10)
    with pytest.raises(DatabaseUnavailable, match="database"):
        await fails
    assert poison.tries > Committer.TRIES
    assert bench.outage.has_ended()


async def test_a_change_that_fails_while_no_other_passes_waits(bench: Bench, poison: Poison) -> None:
    job = (await bench.committer.accept(submission(a_job()))).job
    poison.jobs.add(job.job_id)
    waits = asyncio.create_task(bench.committer.commit(start(job)))
    await asyncio.sleep(0.6)
    assert not waits.done()
    poison.jobs.clear()
    assert (await asyncio.wait_for(waits, 5)).event.seq == 2
    assert bench.outage.has_ended()


@pytest.mark.parametrize("apart", [False, True])
async def test_nothing_is_told_before_a_change_whose_outcome_is_not_known(
    bench: Bench, poison: Poison, apart: bool
) -> None:
    job = (await bench.committer.accept(submission(a_job()))).job
    if apart:
        poison.jobs.add(job.job_id)
    moved = asyncio.create_task(bench.committer.commit(start(job)))
    if apart:
        await wait_until(lambda: poison.tries > Committer.TRIES)
    read_back, asked = bench.records.read_back, 0

    def answer_late(changes: Sequence[JobChange]) -> list[int] | None:
        nonlocal asked
        if bench.records.log[-1].event.kind is EventKind.STARTED and (asked := asked + 1) < 20:
            raise DatabaseUnavailable("connection cut")
        return read_back(changes)

    bench.records.read_back = answer_late  # type: ignore[method-assign]  # it fails where `check` does not
    bench.records.lose_answers = 1
    poison.jobs.clear()
    await wait_until(lambda: asked)
    later = await bench.committer.commit(submission(a_job()))
    assert ((await moved).event.seq, later.event.seq) == (2, 3)
    assert [change.event.seq for change in bench.committed] == [1, 2, 3]


async def test_an_outage_is_told_once_it_lasts_and_ends_when_something_could_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatabaseOutage, "MAX_SILENT_SECONDS", 0.5)

    def fail(*_: object) -> list[int]:
        raise DatabaseUnavailable("(1146, 'Table does not exist')", defect=1146)

    monkeypatch.setattr(bench.records, "commit", fail)
    monkeypatch.setattr(bench.records, "check", fail)
    with pytest.raises(DatabaseUnavailable):
        await bench.committer.accept(submission(a_job()))
    assert bench.outage.describe() is None
    await wait_until(bench.outage.describe)
    assert "error 1146" in str(bench.outage.describe())
    assert (bench.outage.is_active(), bench.outage.get_defect()) == (True, 1146)
    monkeypatch.setattr(bench.records, "check", lambda *_: None)
    await wait_until(bench.outage.has_ended)
    assert (bench.outage.describe(), bench.outage.get_defect()) == (None, 0)


async def test_a_tracker_without_work_hears_of_an_outage_and_of_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Committer, "LEASE_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(DatabaseOutage, "MAX_SILENT_SECONDS", 0.2)
    outage, settings, registry = DatabaseOutage(1), TrackerSettings(), MetricsRegistry()
    idle = Committer(bench.records, 1, settings, outage, bench.broken.append, registry, "blue")
    await idle.start()
    bench.records.down = True
    await wait_until(outage.describe)
    # Changes may still be tried: whether they can be written is theirs to find out.
    assert not outage.is_active()
    bench.records.down = False
    await wait_until(outage.has_ended)
    await idle.stop()


async def test_stopping_writes_what_waits() -> None:
    bench = Bench()
    await bench.committer.start()
    jobs = [a_job() for _ in range(5)]
    accepting = [asyncio.create_task(bench.committer.accept(submission(job))) for job in jobs]
    await asyncio.sleep(0)
    await bench.committer.stop()
    assert [(await task).event.seq for task in accepting] == [1, 2, 3, 4, 5]
