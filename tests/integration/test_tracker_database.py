"""The tracker over a real MariaDB that stops, is killed and comes back."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from avatarforge.domain.changes import NewJob
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.generations import GenerationProgress, GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job
from tests.servers.mariadb import MariaDbServer
from tests.twins import MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path) as server:
        yield server


@pytest.fixture
def engine(mariadb: MariaDbServer) -> Engine:
    url = mariadb.create_database("tracker")
    upgrade(url)
    return open_engine(DatabaseSettings(connect_timeout=1, read_timeout=2), url)


@pytest.fixture
def records(engine: Engine) -> JobRepository:
    return JobRepository(engine)


@pytest.fixture
def replicas() -> ScriptedReplicas:
    return ScriptedReplicas(slots=4)


@pytest.fixture
async def tracker(
    engine: Engine, records: JobRepository, replicas: ScriptedReplicas, tmp_path: Path
) -> AsyncIterator[JobTracker]:
    broken: list[Exception] = []
    tracker = JobTracker(
        0,
        TrackerSettings(commit_timeout_seconds=3),
        Ports(
            store=records,
            deletions=DeletionRepository(engine),
            deliveries=DeliveryRepository(engine),
            storage=FolderStorage(tmp_path / "objects"),
            webhooks=MemoryWebhooks(),
            replicas=replicas,
        ),
        on_broken=broken.append,
    )
    await tracker.start()
    yield tracker
    await tracker.stop()
    assert broken == [], "an outage breaks nothing"


def a_new_job(customer_id: str) -> NewJob:
    """Of today: the log forgets what is old."""
    return NewJob(job=a_job(customer_id=customer_id, created_at=datetime.now(UTC)))


def all_done(records: JobRepository, jobs: list[ProfilePhotoJob]) -> bool:
    ends = [records.find_job(job.customer_id, job.job_id) for job in jobs]
    return all(end is not None and end.status is ProcessingStatus.DONE for end in ends)


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_database_that_goes_away_loses_nothing_and_doubles_nothing(
    tracker: JobTracker, records: JobRepository, mariadb: MariaDbServer, way: str
) -> None:
    accepted: list[ProfilePhotoJob] = []
    refused = 0

    async def submit_some(count: int) -> None:
        nonlocal refused
        for number in range(count):
            [answer] = await tracker.submissions.submit([a_new_job(f"customer-{number % 5}")])
            if isinstance(answer, ProfilePhotoJob):
                accepted.append(answer)
            else:
                assert isinstance(answer, DatabaseUnavailable)
                refused += 1
                await asyncio.sleep(0.05)

    submitting = asyncio.create_task(submit_some(150))
    await wait_until(lambda: len(accepted) >= 20)
    await asyncio.to_thread(getattr(mariadb, way))
    await wait_until(lambda: refused >= 3, deadline=30)
    await asyncio.to_thread(mariadb.start)
    await submitting
    assert len(accepted) + refused == 150
    await wait_until(lambda: asyncio.to_thread(all_done, records, accepted), deadline=60)

    stories: dict[str, list[EventKind]] = {}
    seqs = []
    for change in records.list_shard_events(0, 0, 10_000):
        stories.setdefault(change.event.job_id, []).append(change.event.kind)
        seqs.append(change.event.seq)
    assert seqs == sorted(set(seqs))
    assert set(stories) >= {job.job_id for job in accepted}
    for job in accepted:
        story = stories[job.job_id]
        assert (story[0], story[-2:]) == (EventKind.SUBMITTED, [EventKind.STARTED, EventKind.DONE])
        assert story.count(EventKind.DONE) == 1
        # A start whose commit took the outage had given its slot away, and went back into the line.
        assert story.count(EventKind.STARTED) == story.count(EventKind.REQUEUED) + 1
    for job_id in set(stories) - {job.job_id for job in accepted}:
        # Committed, though the client was told 503 after the answer was lost: erased when that was seen.
        assert stories[job_id] == [EventKind.SUBMITTED, EventKind.ERASED]


async def test_what_is_cancelled_or_erased_during_an_outage_is_so_once_the_database_is_back(
    tracker: JobTracker, records: JobRepository, replicas: ScriptedReplicas, mariadb: MariaDbServer
) -> None:
    async def silent(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=3)
        await asyncio.Event().wait()

    replicas.script = silent
    cancelled, erased = await tracker.submissions.submit([a_new_job("ana"), a_new_job("ana")])
    assert isinstance(cancelled, ProfilePhotoJob)
    assert isinstance(erased, ProfilePhotoJob)
    await wait_until(lambda: len(replicas.tasks) == 2)
    await asyncio.to_thread(mariadb.kill)
    outcomes = await asyncio.gather(
        tracker.commands.cancel("ana", cancelled.job_id),
        tracker.commands.erase("ana", erased.job_id),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 2
    await asyncio.to_thread(mariadb.start)

    # It is on record a moment before the tracker hears of it, which refuses until then.
    await wait_until(
        lambda: records.find_job("ana", erased.job_id) is None and tracker._committer._outage.error is None,
        deadline=30,
    )
    again = await asyncio.wait_for(tracker.commands.cancel("ana", cancelled.job_id), 30)
    assert again.status is ProcessingStatus.CANCELLED
    changes = records.list_shard_events(0, 0, 100)
    assert {
        job.job_id: [change.event.kind for change in changes if change.event.job_id == job.job_id]
        for job in (cancelled, erased)
    } == {
        cancelled.job_id: [EventKind.SUBMITTED, EventKind.STARTED, EventKind.CANCELLED],
        erased.job_id: [EventKind.SUBMITTED, EventKind.STARTED, EventKind.ERASED],
    }
