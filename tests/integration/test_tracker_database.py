"""The tracker over a real MariaDB that stops, is killed and comes back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.persistence import JobRecords, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, TrackerSettings
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job
from tests.servers.mariadb import MariaDbServer
from tests.twins import ScriptedReplicas
from tests.waiting import wait_until


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path) as server:
        yield server


@pytest.fixture
def records(mariadb: MariaDbServer) -> JobRecords:
    url = mariadb.create_database("tracker")
    upgrade(url)
    return JobRecords(open_engine(DatabaseSettings(connect_timeout=1, read_timeout=2), url))


@pytest.fixture
async def tracker(records: JobRecords) -> AsyncIterator[JobTracker]:
    tracker = JobTracker(
        0,
        records,
        ScriptedReplicas(slots=4),
        TrackerSettings(accept_timeout=3),
        on_broken=lambda error: pytest.fail(f"an outage breaks nothing: {error}"),
    )
    await tracker.start()
    yield tracker
    await tracker.stop()


def all_done(records: JobRecords, jobs: list[ProfilePhotoJob]) -> bool:
    ends = [records.job(job.customer_id, job.job_id) for job in jobs]
    return all(end is not None and end.status is ProcessingStatus.DONE for end in ends)


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_database_that_goes_away_loses_nothing_and_doubles_nothing(
    tracker: JobTracker, records: JobRecords, mariadb: MariaDbServer, way: str
) -> None:
    accepted: list[ProfilePhotoJob] = []
    refused = 0

    async def submit_some(count: int) -> None:
        nonlocal refused
        for number in range(count):
            [answer] = await tracker.submit([a_job(customer_id=f"customer-{number % 5}")])
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
    for change in records.events_after(0, 0, 10_000):
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
