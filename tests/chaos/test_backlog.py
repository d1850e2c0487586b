"""A tracker that starts with a hundred thousand jobs in the queue."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.chaos.conftest import IS_LONG, told
from tests.factories import a_job
from tests.servers.mariadb import MariaDbServer
from tests.twins import MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until

JOBS = 100_000
CUSTOMERS = 1_000
BATCH = 1_000
DONE = 200
"""Jobs to be done before it is believed that the others will be."""


def fill(records: JobRepository) -> None:
    epoch, created_at = records.claim_shard(0), datetime.now(UTC)
    for first in range(0, JOBS, BATCH):
        jobs = [
            a_job(customer_id=f"customer-{number % CUSTOMERS}", created_at=created_at)
            for number in range(first, first + BATCH)
        ]
        records.commit(
            0, epoch, [JobChange(job=job, event=job.event(EventKind.SUBMITTED, created_at)) for job in jobs]
        )


async def measure_stalls(stalls: list[float]) -> None:
    """Note how late the event loop is, ten times a second."""
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(0.1)
        stalls.append(time.perf_counter() - asked - 0.1)


@pytest.mark.skipif(not IS_LONG, reason="it fills a database: `make chaos`")
@pytest.mark.timeout(900)
async def test_a_tracker_takes_over_a_queue_of_a_hundred_thousand(tmp_path: Path) -> None:
    with MariaDbServer(tmp_path / "mariadb", "--innodb-flush-log-at-trx-commit=0") as mariadb:
        url = mariadb.create_database("backlog")
        upgrade(url)
        engine = open_engine(DatabaseSettings(), url)
        records = JobRepository(engine)
        fill(records)
        broken: list[Exception] = []
        ports = Ports(
            store=records,
            deletions=DeletionRepository(engine),
            deliveries=DeliveryRepository(engine),
            storage=FolderStorage(tmp_path / "objects"),
            webhooks=MemoryWebhooks(),
            replicas=ScriptedReplicas(slots=8),
        )
        tracker = JobTracker(0, TrackerSettings(), ports, on_broken=broken.append)
        process, stalls = psutil.Process(os.getpid()), list[float]()
        before, begun = process.memory_full_info().uss, time.perf_counter()
        watching = asyncio.create_task(measure_stalls(stalls))
        await tracker.start()
        fault = f"{JOBS} jobs in the queue"
        told(fault, "the tracker is ready after", time.perf_counter() - begun, "s")
        told(fault, "and takes", (process.memory_full_info().uss - before) / 2**20, "MiB")
        ready = time.perf_counter()

        def done() -> bool:
            return JOBS - tracker.describe()["unfinished"] >= DONE

        await wait_until(done, deadline=120)
        told(fault, "jobs done in a second", DONE / (time.perf_counter() - ready), "")
        told(fault, "longest pause of the event loop", max(stalls), "s")
        watching.cancel()
        await tracker.stop()
        ended = JOBS - len(records.list_unfinished(0))
        assert ended >= DONE
        assert records.list_jobs("customer-0", None, 200)[-1].status is ProcessingStatus.DONE
        assert broken == []
        engine.dispose()
