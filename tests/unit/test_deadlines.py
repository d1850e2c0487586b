"""Deadlines that clients set, through a whole tracker over twins."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avatarforge.domain.changes import NewJob
from avatarforge.domain.jobs import GenerationParameters, JobError, ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job
from tests.holding import HeldCommits
from tests.tracker_bench import Bench, silent
from tests.twins import ScriptedReplicas, three_steps
from tests.waiting import wait_until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.settings = TrackerSettings(lease_seconds=60, commit_timeout_seconds=0.3)
    bench.replicas = ScriptedReplicas(slots=1)
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()


def a_hurried_job(
    *, timeout: float | None = None, start_timeout: float | None = None, created_at: datetime | None = None
) -> ProfilePhotoJob:
    parameters = GenerationParameters(seed=1, timeout_seconds=timeout, start_timeout_seconds=start_timeout)
    return a_job(parameters=parameters, created_at=created_at or datetime.now(UTC))


async def submitted(tracker: JobTracker, job: ProfilePhotoJob) -> ProfilePhotoJob:
    [answer] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(answer, ProfilePhotoJob), answer
    return answer


async def test_deadlines_of_jobs_that_have_ended_are_not_kept_till_they_come(bench: Bench) -> None:
    tracker = await bench.start()
    deadlines = tracker._deadlines
    deadlines.MAX_FINISHED_ENTRIES = deadlines._compact_at = 10
    for _ in range(5):
        jobs = [await submitted(tracker, a_hurried_job(timeout=604_800)) for _ in range(5)]
        for job in jobs:
            await bench.ended(job)
        await wait_until(lambda: tracker.describe()["unfinished"] == 0)
    assert len(deadlines._due) <= 15


async def test_a_generation_stops_at_its_jobs_deadline(bench: Bench) -> None:
    bench.replicas.script = silent
    tracker = await bench.start()
    job = await submitted(tracker, a_hurried_job(timeout=0.3))
    failed = await bench.ended(job)
    assert (failed.status, failed.error) == (
        ProcessingStatus.FAILED,
        JobError(
            code="deadline_exceeded",
            message="The job had not ended 0.3 seconds after its upload (timeoutSeconds).",
        ),
    )
    await wait_until(lambda: bench.replicas.closed == [job.job_id])
    assert bench.story(job) == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.FAILED]


async def test_a_job_that_does_not_start_in_time_fails_and_leaves_the_line(bench: Bench) -> None:
    bench.replicas.next_scripts.append(silent)
    tracker = await bench.start()
    await submitted(tracker, a_hurried_job())
    await wait_until(lambda: bench.replicas.tasks)
    late = await submitted(tracker, a_hurried_job(start_timeout=0.2))
    failed = await bench.ended(late)
    assert failed.error is not None
    assert (
        failed.error.message == "The job had not started 0.2 seconds after its upload (startTimeoutSeconds)."
    )
    assert bench.story(late) == [EventKind.SUBMITTED, EventKind.FAILED]


async def test_a_job_that_has_started_in_time_may_take_longer(bench: Bench) -> None:
    bench.replicas.script = silent
    tracker = await bench.start()
    job = await submitted(tracker, a_hurried_job(start_timeout=0.2))
    other = await submitted(tracker, a_hurried_job(start_timeout=0.2))
    await bench.ended(other)
    assert bench.records.jobs[job.job_id].status is ProcessingStatus.PROCESSING


async def test_deadlines_go_on_with_the_next_tracker(bench: Bench) -> None:
    bench.replicas.script = silent
    first = await bench.start()
    made = datetime.now(UTC) - timedelta(seconds=59.5)
    job = await submitted(first, a_hurried_job(timeout=60, created_at=made))
    await wait_until(lambda: EventKind.STARTED in bench.story(job))
    await first.stop()
    await bench.start()
    failed = await bench.ended(job)
    assert failed.error is not None
    assert failed.error.code == "deadline_exceeded"


async def test_a_clock_that_is_put_back_moves_no_deadline(bench: Bench) -> None:
    bench.replicas.script = silent
    tracker = await bench.start()
    future = datetime.now(UTC) + timedelta(days=1)
    begun = asyncio.get_running_loop().time()
    job = await submitted(tracker, a_hurried_job(timeout=0.3, created_at=future))
    await bench.ended(job)
    assert asyncio.get_running_loop().time() - begun < 5


async def test_a_job_that_ends_while_its_deadline_is_met_ends_once(bench: Bench) -> None:
    held = HeldCommits(bench.records, EventKind.DONE)
    bench.records.commit = held.commit  # type: ignore[method-assign]  # a slow database
    bench.replicas.script = three_steps
    tracker = await bench.start()
    begun = asyncio.get_running_loop().time()
    job = await submitted(tracker, a_hurried_job(timeout=0.3))
    await wait_until(lambda: held.waiting)
    await wait_until(lambda: asyncio.get_running_loop().time() > begun + 0.4)
    held.release()
    assert (await bench.ended(job)).status is ProcessingStatus.DONE
    other = await submitted(tracker, a_hurried_job())
    await bench.ended(other)
    assert bench.story(job) == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.DONE]
