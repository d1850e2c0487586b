"""A database that answers single statements with each of its errors, or always refuses what one job needs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from avatarforge.background import Backoff
from avatarforge.domain.changes import IdempotencyKey, NewJob
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.database import begin_write
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.jobs.committer import Committer
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.chaos.conftest import IS_LONG, told
from tests.factories import a_job
from tests.servers.mariadb import OUTAGE_ERRORS, MariaDbServer
from tests.servers.tcp_proxy import TcpProxy
from tests.twins import MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until

STATEMENTS = (
    b"FOR UPDATE",
    b"INSERT INTO job_events",
    b"INSERT INTO customers",
    b"INSERT INTO profile_photo_jobs",
    b"INSERT INTO profile_photos",
    b"DELETE FROM idempotency_keys",
    b"INSERT INTO idempotency_keys",
    b"INSERT INTO webhook_deliveries",
    b"UPDATE profile_photo_jobs",
    b"COMMIT",
)
"""One of each kind that a commit sends."""
ERRORS = OUTAGE_ERRORS if IS_LONG else (1146, 1206, 9001)


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture
def proxy(mariadb: MariaDbServer) -> Iterator[TcpProxy]:
    with TcpProxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
def records(mariadb: MariaDbServer, request: pytest.FixtureRequest) -> JobRepository:
    """Of the test, which no proxy disturbs."""
    url = mariadb.create_database(f"errors_{abs(hash(request.node.name))}")
    upgrade(url)
    return JobRepository(open_engine(DatabaseSettings(), url))


@pytest.fixture
async def tracker(records: JobRepository, proxy: TcpProxy, tmp_path: Path) -> AsyncIterator[JobTracker]:
    url = records._engine.url.set(port=proxy.port).render_as_string(hide_password=False)
    engine = open_engine(DatabaseSettings(), url)
    broken: list[Exception] = []
    tracker = JobTracker(
        0,
        TrackerSettings(),
        Ports(
            store=JobRepository(engine),
            deletions=DeletionRepository(engine),
            deliveries=DeliveryRepository(engine),
            storage=FolderStorage(tmp_path / "objects"),
            webhooks=MemoryWebhooks(),
            replicas=ScriptedReplicas(slots=4),
        ),
        on_broken=broken.append,
    )
    await tracker.start()
    yield tracker
    await tracker.stop()
    assert broken == [], "no error of one statement ends a tracker"


async def submit(tracker: JobTracker, customer_id: str, key: str) -> ProfilePhotoJob:
    job = replace(
        a_job(customer_id=customer_id, created_at=datetime.now(UTC)), callback_url="https://example.com/told"
    )
    name = IdempotencyKey(key=key, fingerprint="0" * 64)
    [kept] = await tracker.submissions.submit([NewJob(job=job, idempotency_key=name)])
    assert isinstance(kept, ProfilePhotoJob), kept
    return kept


def read_ends(records: JobRepository, jobs: list[ProfilePhotoJob]) -> list[ProfilePhotoJob]:
    found = [records.find_job(job.customer_id, job.job_id) for job in jobs]
    return [job for job in found if job is not None and job.status.is_terminal]


@pytest.mark.timeout(1200)
async def test_no_job_fails_for_an_error_of_the_database(
    tracker: JobTracker, records: JobRepository, proxy: TcpProxy
) -> None:
    jobs: list[ProfilePhotoJob] = []
    for words in STATEMENTS:
        for code in ERRORS:
            wanted = proxy.refusals + 1
            proxy.refuse_at(words, code)
            jobs.append(await submit(tracker, f"customer-{len(jobs) % 5}", f"{words!r} {code}"))
            await wait_until(lambda wanted=wanted: proxy.refusals >= wanted, deadline=30)
    await wait_until(lambda: not records.list_unfinished(0), deadline=60)
    ends = read_ends(records, jobs)
    told("each error at each statement", "refusals", proxy.refusals, "")
    assert len(ends) == len(jobs)
    assert {job.status for job in ends} == {ProcessingStatus.DONE}, [job.error for job in ends if job.error]
    changes = records.list_shard_events(0, 0, 100_000)
    assert sum(change.event.kind is EventKind.DONE for change in changes) == len(jobs)


@pytest.mark.timeout(300)
async def test_a_job_whose_result_is_always_refused_fails_and_holds_up_no_other(
    tracker: JobTracker, records: JobRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not IS_LONG:
        monkeypatch.setattr(Committer, "MIN_APART_SECONDS", 5.0)
        monkeypatch.setattr(Committer, "APART_BACKOFF", Backoff(first=0.2, longest=1.0))
    refused = (
        "CREATE TRIGGER refusal BEFORE UPDATE ON profile_photo_jobs FOR EACH ROW IF NEW.customer_id = 'ill' "
        "AND NEW.status = 'DONE' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF"
    )
    with begin_write(records._engine) as connection:
        connection.execute(text(refused))
    ill = await submit(tracker, "ill", "ill")
    others: list[ProfilePhotoJob] = []
    unkept = 0
    while not read_ends(records, [ill]):
        try:
            others.append(await submit(tracker, f"customer-{len(others) % 5}", f"{len(others)} {unkept}"))
        except AssertionError:
            unkept += 1
        await asyncio.sleep(0.1)
    [end] = read_ends(records, [ill])
    assert end.error is not None
    assert (end.status, end.error.code) == (ProcessingStatus.FAILED, "internal_error")
    await wait_until(lambda: not records.list_unfinished(0), deadline=30)
    ends = read_ends(records, others)
    assert {job.status for job in ends} == {ProcessingStatus.DONE}
    # While it was tried at the head of the line, four seconds or so.
    assert unkept < len(others)
    told("a result that is always refused", "jobs done meanwhile", len(others), "")
