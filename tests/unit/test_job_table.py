import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.errors import IllegalTransition
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.availability import DatabaseOutage
from avatarforge.tracker.jobs.committer import Committer
from avatarforge.tracker.jobs.job_table import JobFinished, JobTable
from tests.factories import NOON, a_job
from tests.twins import MemoryRecords


class Bench:
    """A job table over a twin of the record. It writes down what is told, and how the table stood then."""

    def __init__(self) -> None:
        self.records = MemoryRecords()
        self.told: list[tuple[EventKind, ProfilePhotoJob | None]] = []
        self.numbers: list[int] = []
        self.committer = Committer(
            self.records,
            0,
            TrackerSettings(max_commit_batch=10, commit_timeout_seconds=1),
            DatabaseOutage(0),
            on_broken=lambda error: None,
            registry=MetricsRegistry(),
        )
        self.table = JobTable(self.committer, lambda: NOON)
        self.table.subscribe(self._note)

    def _note(self, change: JobChange) -> None:
        self.numbers.append(change.event.seq)
        self.told.append((change.event.kind, self.table.get(change.job.job_id)))


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.committer.start()
    yield bench
    await bench.committer.stop()


def started(job: ProfilePhotoJob) -> ProfilePhotoJob:
    return job.start(NOON)


def cancelled(job: ProfilePhotoJob) -> ProfilePhotoJob:
    return job.cancel(NOON)


async def test_a_change_is_told_after_it_is_committed_and_shown(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    running = await bench.table.update(job.job_id, started, EventKind.STARTED)
    assert (job.seq, running.seq) == (1, 2)
    assert bench.told == [(EventKind.SUBMITTED, job), (EventKind.STARTED, running)]
    assert bench.records.jobs[job.job_id] == running == bench.table.get(job.job_id)


async def test_changes_of_one_commit_are_told_in_the_order_of_their_numbers(bench: Bench) -> None:
    """A cursor stands for everything up to its number."""
    running = [await bench.table.insert(NewJob(job=a_job())) for _ in range(3)]
    groups = len(bench.records.groups)
    await asyncio.gather(
        *(
            move
            for job in running
            for move in (
                bench.table.insert(NewJob(job=a_job())),
                bench.table.update(job.job_id, started, EventKind.STARTED),
            )
        )
    )
    assert max(bench.records.groups[groups:]) > 1
    assert bench.numbers == list(range(1, 10))


async def test_a_job_that_has_ended_leaves_the_table(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    last = await bench.table.update(job.job_id, cancelled, EventKind.CANCELLED)
    assert last.status is ProcessingStatus.CANCELLED
    assert bench.told[-1] == (EventKind.CANCELLED, None)
    assert bench.table.all() == ()
    with pytest.raises(JobFinished):
        await bench.table.update(job.job_id, started, EventKind.STARTED)


async def test_moves_at_the_same_time_follow_one_another(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    outcomes = await asyncio.gather(
        bench.table.update(job.job_id, started, EventKind.STARTED),
        bench.table.update(job.job_id, cancelled, EventKind.CANCELLED),
        bench.table.update(job.job_id, started, EventKind.STARTED),
        return_exceptions=True,
    )
    assert [change.event.kind for change in bench.records.log] == [
        EventKind.SUBMITTED,
        EventKind.STARTED,
        EventKind.CANCELLED,
    ]
    assert isinstance(outcomes[2], JobFinished)


async def test_moves_of_different_jobs_share_a_transaction(bench: Bench) -> None:
    jobs = await asyncio.gather(*(bench.table.insert(NewJob(job=a_job())) for _ in range(5)))
    bench.records.groups.clear()
    await asyncio.gather(*(bench.table.update(job.job_id, started, EventKind.STARTED) for job in jobs))
    assert len(bench.records.groups) < 5


async def test_a_move_that_is_not_allowed_changes_nothing(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    running = await bench.table.update(job.job_id, started, EventKind.STARTED)
    with pytest.raises(IllegalTransition):
        await bench.table.update(job.job_id, started, EventKind.STARTED)
    assert bench.table.get(job.job_id) == running
    assert len(bench.told) == 2


async def test_a_move_that_the_database_refuses_changes_nothing_and_the_next_may_go_on(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    with pytest.raises(ValueError, match="revision"):
        await bench.table.update(job.job_id, lambda current: current, EventKind.STARTED)
    assert bench.table.get(job.job_id) == job
    assert (await bench.table.update(job.job_id, started, EventKind.STARTED)).attempt == 1


async def test_locks_are_forgotten_when_nobody_wants_them(bench: Bench) -> None:
    job = await bench.table.insert(NewJob(job=a_job()))
    await bench.table.update(job.job_id, started, EventKind.STARTED)
    assert len(bench.table._locks) == 0
