import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable, Overtaken
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.tracker.committer import Committer
from tests.factories import NOON, a_job
from tests.twins import MemoryRecords
from tests.waiting import wait_until


def submission(job: ProfilePhotoJob) -> JobChange:
    return JobChange(job=job, event=job.event(EventKind.SUBMITTED, NOON))


def start(job: ProfilePhotoJob) -> JobChange:
    moved = job.started(NOON)
    return JobChange(job=moved, event=moved.event(EventKind.STARTED, NOON))


class Bench:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.records = MemoryRecords()
        self.committed: list[JobChange] = []
        self.disowned: list[JobChange] = []
        self.broken: list[Exception] = []
        self.committer = Committer(
            self.records,
            0,
            batch=100,
            accept_timeout=0.3,
            on_committed=self.committed.append,
            on_disowned=self.disowned.append,
            on_broken=self.broken.append,
        )


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
    await wait_until(lambda: bench.committer.outage)
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
    await wait_until(lambda: bench.committer.outage is None)
    kept = await bench.committer.accept(submission(a_job()))
    assert [entry.job for entry in bench.records.log if not bench.disowned] == [kept.job]


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
    [change] = await wait_until(lambda: bench.disowned)
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
    with pytest.raises(Overtaken):
        await bench.committer.accept(submission(a_job()))
    [error] = bench.broken
    assert isinstance(error, Overtaken)
    assert (error.epoch, error.current) == (1, 2)


async def test_a_commit_in_the_moment_of_the_time_out_is_not_disowned(bench: Bench) -> None:
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
    await wait_until(lambda: len(kept) + len(bench.disowned) == 3)


async def test_an_outage_ends_with_any_answer(bench: Bench) -> None:
    job = (await bench.committer.accept(submission(a_job()))).job
    bench.records.down = True
    again = asyncio.create_task(bench.committer.commit(submission(job)))
    await wait_until(lambda: bench.committer.outage)
    bench.records.down = False
    committed = bench.records.committed
    bench.records.committed = lambda changes: None  # type: ignore[method-assign]  # so that the repeat is refused
    with pytest.raises(ValueError, match="in the log already"):
        await again
    bench.records.committed = committed  # type: ignore[method-assign]  # as it was
    assert bench.committer.outage is None


async def test_stopping_writes_what_waits() -> None:
    bench = Bench()
    await bench.committer.start()
    jobs = [a_job() for _ in range(5)]
    accepting = [asyncio.create_task(bench.committer.accept(submission(job))) for job in jobs]
    await asyncio.sleep(0)
    await bench.committer.stop()
    assert [(await task).event.seq for task in accepting] == [1, 2, 3, 4, 5]
