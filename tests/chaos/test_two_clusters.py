"""Two clusters on one database, as an upgrade may start them: the younger serves; nothing is done twice."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avatarforge.domain.changes import NewJob
from avatarforge.domain.errors import ShardLeased, Unavailable
from avatarforge.domain.generations import GenerationFinished, GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.leases import LEASE
from avatarforge.domain.status import EventKind
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.chaos.conftest import IS_LONG, JOBS, told
from tests.factories import a_job, an_outcome
from tests.servers.mariadb import MariaDbServer
from tests.twins import MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until

SECONDS = 600.0 if IS_LONG else 1.5 * LEASE.total_seconds()
"""How long the clusters stand side by side."""
SLOTS = 4
JOB_SECONDS = 1.0
PAUSE_SECONDS = 0.5
"""Between two submissions: no cluster is given more than its slots finish, however fast the machine is."""
RESTART_SECONDS = 2.0
"""After which Ray starts a tracker again."""


async def some_time(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    await asyncio.sleep(JOB_SECONDS)
    yield GenerationFinished(outcome=an_outcome())


class OneCluster:
    """A cluster's tracker, which is started again whenever it gives up."""

    def __init__(self, cluster_id: str, url: str, folder: Path) -> None:
        self.cluster_id = cluster_id
        self.starts = 0
        self._engine = open_engine(DatabaseSettings(), url)
        self._folder = folder
        self._replicas = ScriptedReplicas(slots=SLOTS, script=some_time)
        self.tracker: JobTracker | None = None
        self._task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        while True:
            self.starts += 1
            broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
            self.tracker = JobTracker(
                0,
                TrackerSettings(commit_timeout_seconds=1),
                Ports(
                    store=JobRepository(self._engine),
                    deletions=DeletionRepository(self._engine),
                    deliveries=DeliveryRepository(self._engine),
                    storage=FolderStorage(self._folder),
                    webhooks=MemoryWebhooks(),
                    replicas=self._replicas,
                ),
                on_broken=lambda error, broken=broken: broken.done() or broken.set_result(error),
                cluster_id=self.cluster_id,
            )
            starting = asyncio.create_task(self.tracker.start())
            try:
                await broken
                await asyncio.sleep(RESTART_SECONDS)
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await self.tracker.stop()

    async def submit(self, customer_id: str) -> ProfilePhotoJob | Exception:
        assert self.tracker is not None
        job = a_job(customer_id=customer_id, created_at=datetime.now(UTC))
        [answer] = await self.tracker.submissions.submit([NewJob(job=job)])
        return answer

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path) as server:
        yield server


@pytest.mark.timeout(1200)
async def test_of_two_clusters_the_younger_serves_and_the_elder_is_idle_and_says_so(
    mariadb: MariaDbServer, tmp_path: Path
) -> None:
    url = mariadb.create_database("shared")
    upgrade(url)
    records = JobRepository(open_engine(DatabaseSettings(), url))
    kept: list[ProfilePhotoJob] = []
    elder = OneCluster("blue", url, tmp_path / "objects")
    await asyncio.sleep(1)

    async def submit_to(cluster: OneCluster) -> None:
        answer = await cluster.submit(f"customer-{len(kept) % 8}")
        if isinstance(answer, ProfilePhotoJob):
            kept.append(answer)
        else:
            assert isinstance(answer, Unavailable), answer

    for _ in range(JOBS // 3):
        await submit_to(elder)
    begun = time.monotonic()
    younger = OneCluster("green", url, tmp_path / "objects")
    answer: object = None
    while not isinstance(answer, ShardLeased):
        await asyncio.sleep(PAUSE_SECONDS)
        answer = await elder.submit("customer-0")
        if isinstance(answer, ProfilePhotoJob):
            kept.append(answer)
    told("two clusters", "until the elder is idle", time.monotonic() - begun, "s")
    assert "green" in str(answer)
    while len(kept) < JOBS or time.monotonic() < begun + SECONDS:
        await submit_to(younger)
        assert not isinstance(await elder.submit("customer-0"), ProfilePhotoJob)
        await asyncio.sleep(PAUSE_SECONDS)
    await wait_until(lambda: not records.list_unfinished(0), deadline=60)
    starts = (elder.starts, younger.starts)
    log = records.list_shard_events(0, 0, 1_000_000)
    gone = time.monotonic()
    await younger.stop()
    while not isinstance(answer, ProfilePhotoJob):
        await asyncio.sleep(PAUSE_SECONDS)
        answer = await elder.submit("customer-0")
        assert time.monotonic() < gone + 60
    told("two clusters", "until the elder serves again", time.monotonic() - gone, "s")
    await elder.stop()
    told("two clusters", "jobs", len(kept), "")

    ends = [change.event.job_id for change in log if change.event.kind is EventKind.DONE]
    assert sorted(ends) == sorted(job.job_id for job in kept), "each is done, and once"
    assert starts == (2, 1), "nobody takes the shard from the other again"
    attempts = max(change.event.attempt for change in log)
    told("two clusters", "highest attempt", attempts, "")
    assert attempts <= 2
