import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import JobError, ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.feed import FeedCursor
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job, an_outcome
from tests.twins import MemoryRecords, ScriptedReplicas
from tests.waiting import wait_until

SETTINGS = TrackerSettings(accept_timeout=0.3, lease_seconds=0.2)


class Bench:
    """A tracker over twins, that can be killed and started again on the same records."""

    def __init__(self) -> None:
        self.records = MemoryRecords()
        self.replicas = ScriptedReplicas()
        self.settings = SETTINGS
        self.broken: list[Exception] = []
        self.trackers: list[JobTracker] = []

    async def start(self) -> JobTracker:
        tracker = JobTracker(0, self.records, self.replicas, self.settings, on_broken=self.broken.append)
        self.trackers.append(tracker)
        await tracker.start()
        return tracker

    async def ended(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        await wait_until(lambda: self.records.jobs[job.job_id].status.is_terminal)
        return self.records.jobs[job.job_id]

    def story(self, job: ProfilePhotoJob) -> list[EventKind]:
        return [change.event.kind for change in self.records.log if change.job.job_id == job.job_id]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()


async def broken(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationProgress(step=1, total_steps=3)
    raise ConnectionError("the replica died")


async def silent(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationProgress(step=1, total_steps=3)
    await asyncio.Event().wait()


async def refused(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationFailed(error=JobError(code="no_steps", message="Nothing to do."))


async def test_a_job_goes_from_submitted_to_done(bench: Bench) -> None:
    tracker = await bench.start()
    [accepted] = await tracker.submit([a_job()])
    assert isinstance(accepted, ProfilePhotoJob)
    assert (accepted.status, accepted.seq) == (ProcessingStatus.PENDING, 1)
    done = await bench.ended(accepted)
    assert (done.status, done.attempt, done.outcome) == (ProcessingStatus.DONE, 1, an_outcome())
    assert done.timings["queued"] >= 0
    assert bench.story(done) == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.DONE]


async def test_a_lost_worker_sends_the_job_back_and_raises_the_attempt(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.next_scripts.append(broken)
    [job] = await tracker.submit([a_job()])
    done = await bench.ended(job)
    assert (done.status, done.attempt, done.losses) == (ProcessingStatus.DONE, 2, 1)
    assert [task.attempt for task in bench.replicas.tasks] == [1, 2]


async def test_a_silent_worker_loses_its_lease_and_its_stream_is_closed(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.next_scripts.append(silent)
    [job] = await tracker.submit([a_job()])
    done = await bench.ended(job)
    assert (done.status, done.attempt) == (ProcessingStatus.DONE, 2)
    assert bench.replicas.closed == [job.job_id, job.job_id]


async def test_a_job_that_loses_three_workers_fails(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = broken
    [job] = await tracker.submit([a_job()])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 3)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"


async def test_a_generation_that_cannot_succeed_fails_at_once(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = refused
    [job] = await tracker.submit([a_job()])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 1)
    assert failed.error == JobError(code="no_steps", message="Nothing to do.")


async def test_a_stream_that_the_replica_cancels_loses_the_attempt_only(bench: Bench) -> None:
    async def cancelled(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=3)
        raise asyncio.CancelledError

    tracker = await bench.start()
    bench.replicas.next_scripts.append(cancelled)
    [job] = await tracker.submit([a_job()])
    done = await bench.ended(job)
    assert (done.status, done.losses) == (ProcessingStatus.DONE, 1)


async def test_a_job_that_a_worker_gives_back_waits_before_it_goes_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sick(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationFailed(error=JobError(code="device_failed", message="Hot."), retryable=True)

    monkeypatch.setattr(JobTracker, "RETRY_PAUSE", 0.2)
    tracker = await bench.start()
    bench.replicas.script = sick
    began = time.monotonic()
    [job] = await tracker.submit([a_job()])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 3)
    assert time.monotonic() - began > 0.2 + 0.4


async def test_a_job_whose_end_the_database_refuses_fails_and_does_not_hang(bench: Bench) -> None:
    commit = bench.records.commit

    def picky(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        if any(change.event.kind is EventKind.DONE for change in changes):
            raise ValueError("a value is too long")
        return commit(shard, epoch, changes)

    bench.records.commit = picky  # type: ignore[method-assign]  # a database that refuses one kind of change
    tracker = await bench.start()
    [job] = await tracker.submit([a_job()])
    failed = await bench.ended(job)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (ProcessingStatus.FAILED, "internal_error")
    assert bench.broken == []


async def test_no_slot_is_held_while_the_database_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobTracker, "HOLD", 0.1)
    tracker = await bench.start()
    bench.replicas = ScriptedReplicas(slots=1)
    tracker._replicas = bench.replicas
    bench.records.hold_starts = threading.Event()
    [job] = await tracker.submit([a_job()])
    await wait_until(lambda: bench.records.starts_held)
    async with asyncio.timeout(5), bench.replicas.reserve():
        bench.records.hold_starts.set()
    done = await bench.ended(job)
    assert (done.status, done.attempt, done.losses) == (ProcessingStatus.DONE, 2, 0)


async def test_no_more_jobs_run_than_there_are_slots(bench: Bench) -> None:
    running = most = 0
    pair = asyncio.Barrier(2)

    async def counted(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield GenerationProgress(step=1, total_steps=1)
        # Nobody ends alone: both slots are in use.
        await pair.wait()
        running -= 1
        yield GenerationFinished(outcome=an_outcome())

    tracker = await bench.start()
    bench.replicas.script = counted
    jobs = await tracker.submit([a_job() for _ in range(20)])
    for job in jobs:
        assert isinstance(job, ProfilePhotoJob)
        await bench.ended(job)
    assert most == 2


async def test_jobs_in_flight_are_finished_by_the_next_tracker_and_published_once(bench: Bench) -> None:
    first = await bench.start()
    bench.replicas.script = silent
    jobs = await first.submit([a_job() for _ in range(20)])
    await wait_until(lambda: len(bench.replicas.tasks) >= 2)
    await first.stop()
    bench.replicas = ScriptedReplicas()
    await bench.start()
    for job in jobs:
        assert isinstance(job, ProfilePhotoJob)
        assert (await bench.ended(job)).status is ProcessingStatus.DONE
        assert bench.story(job).count(EventKind.DONE) == 1


async def test_an_interrupted_attempt_does_not_count_as_lost(bench: Bench) -> None:
    first = await bench.start()
    bench.replicas.script = silent
    [job] = await first.submit([a_job()])
    await wait_until(lambda: bench.replicas.tasks)
    await first.stop()
    bench.replicas = ScriptedReplicas()
    await bench.start()
    done = await bench.ended(job)
    assert (done.attempt, done.losses) == (2, 0)


async def test_an_overtaken_tracker_publishes_nothing_more(bench: Bench) -> None:
    gate = asyncio.Event()

    async def late(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=1)
        while not gate.is_set():
            yield GenerationProgress(step=1, total_steps=1)
            await asyncio.sleep(0.01)
        yield GenerationFinished(outcome=an_outcome(model="stale"))

    old = await bench.start()
    bench.replicas.next_scripts.append(late)
    [job] = await old.submit([a_job()])
    await wait_until(lambda: bench.replicas.tasks)
    await bench.start()
    done = await bench.ended(job)
    gate.set()
    await wait_until(lambda: bench.broken)
    assert done.outcome == an_outcome()
    assert bench.records.jobs[job.job_id] == done
    assert bench.story(job).count(EventKind.DONE) == 1


async def test_a_submission_that_is_repeated_is_kept_once(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = silent
    job = a_job()
    [first] = await tracker.submit([job])
    [second] = await tracker.submit([job])
    assert isinstance(first, ProfilePhotoJob)
    assert isinstance(second, ProfilePhotoJob)
    assert bench.story(job).count(EventKind.SUBMITTED) == 1
    assert await tracker.find("ana", job.job_id) is not None


async def test_a_database_that_is_down_refuses_submissions(bench: Bench) -> None:
    tracker = await bench.start()
    bench.records.down = True
    [answer] = await tracker.submit([a_job()])
    assert isinstance(answer, DatabaseUnavailable)


async def test_the_feed_tells_every_change_once_in_order(bench: Bench) -> None:
    tracker = await bench.start()
    batch = await tracker.feed(FeedCursor(), 0)
    assert batch.snapshot == ()
    await tracker.submit([a_job() for _ in range(10)])
    seqs: list[int] = []
    while len(seqs) < 30:
        batch = await tracker.feed(batch.cursor, 5)
        seqs += [change.event.seq for change in batch.changes]
        assert batch.cursor.seq == (seqs[-1] if seqs else 0)
    assert seqs == list(range(1, 31))


async def test_a_subscriber_resumes_with_the_next_tracker_from_its_last_seq(bench: Bench) -> None:
    first = await bench.start()
    cursor = (await first.feed(FeedCursor(), 0)).cursor
    [job] = await first.submit([a_job()])
    assert isinstance(job, ProfilePhotoJob)
    await bench.ended(job)
    await first.stop()
    second = await bench.start()
    batch = await second.feed(cursor, 5)
    assert [change.event.kind for change in batch.changes] == [
        EventKind.SUBMITTED,
        EventKind.STARTED,
        EventKind.DONE,
    ]
    assert batch.snapshot == ()
    assert batch.cursor.tracker != cursor.tracker


async def test_the_feed_tells_progress_and_the_order_of_the_line(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    bench.settings = TrackerSettings(lease_seconds=60)
    tracker = await bench.start()
    cursor = (await tracker.feed(FeedCursor(), 0)).cursor
    jobs = await tracker.submit([a_job() for _ in range(3)])
    progress: dict[str, GenerationProgress] = {}
    order: tuple[str, ...] = ()

    async def heard() -> bool:
        nonlocal cursor, order
        batch = await tracker.feed(cursor, 0.1)
        cursor, order = batch.cursor, batch.order if batch.order is not None else order
        progress.update(batch.progress)
        return bool(progress) and len(order) == 2

    await wait_until(heard)
    first, *others = [job.job_id for job in jobs if isinstance(job, ProfilePhotoJob)]
    assert progress == {first: GenerationProgress(step=1, total_steps=3)}
    assert list(order) == others
