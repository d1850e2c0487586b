"""The sweeper over a folder and over a real S3 server."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.jobs import GenerationParameters, ImageFormat, ProfilePhotoJob, new_job_id
from avatarforge.storage import ObjectStorage
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.keys import avatar_key, original_key, owner_of
from avatarforge.storage.s3 import S3Storage
from avatarforge.tracker.cleanup.sweeper import Sweeper
from tests.factories import NOON, a_job, a_variant, an_image, an_outcome
from tests.servers.s3 import S3Server
from tests.twins import MemoryRecords
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStorage]:
    if request.param == "folder":
        yield FolderStorage(tmp_path)
        return
    server: S3Server = request.getfixturevalue("s3_server")
    bucket = S3Storage(server.settings(timeout=60))
    yield bucket
    for stored in list(bucket.list("")):
        bucket.delete(stored.key)


class Bench:
    def __init__(self, storage: ObjectStorage) -> None:
        self.storage = storage
        self.records = MemoryRecords()
        self.now = datetime.now(UTC) + timedelta(days=3)

    def sweeper(self, *customers: str, age: timedelta = timedelta(days=2)) -> Sweeper:
        """Of these customers, or of all."""
        sweeper = Sweeper(
            self.records,
            self.storage,
            owns_customer=lambda customer_id: not customers or customer_id in customers,
            interval=timedelta(days=1),
            age=age,
            now=lambda: self.now,
        )
        sweeper.PAGE = 3
        sweeper.PAGE_PAUSE_SECONDS = sweeper.CONFIRMATION_DELAY_SECONDS = 0
        return sweeper

    def store(self, key: str) -> str:
        self.storage.put(key, BytesIO(b"a picture"), "image/png")
        return key

    def job(self, customer_id: str = "ana") -> ProfilePhotoJob:
        """A job on record that waits, its original in storage."""
        job_id = new_job_id()
        original = an_image(key=self.store(original_key(customer_id, job_id, "image/png")))
        job = a_job(customer_id=customer_id, job_id=job_id, original=original)
        self.records.jobs[job_id] = job
        return job

    def finished_job(self, attempt: int = 1) -> ProfilePhotoJob:
        job = self.job()
        avatar = an_image(key=self.store(avatar_key("ana", job.job_id, attempt, ImageFormat.PNG)))
        done = job.start(NOON).complete(an_outcome(avatar=avatar), NOON)
        self.records.jobs[job.job_id] = done
        return done

    def keys(self) -> set[str]:
        return {stored.key for stored in self.storage.list("")}


@pytest.fixture
def bench(storage: ObjectStorage) -> Bench:
    return Bench(storage)


async def test_what_no_job_names_is_removed_and_the_rest_stays(bench: Bench) -> None:
    done = bench.finished_job(attempt=2)
    waiting = bench.job()
    kept = bench.keys()
    bench.store(avatar_key("ana", done.job_id, 1, ImageFormat.PNG))
    bench.store(original_key("ben", new_job_id(), "image/jpeg"))
    of_running = bench.store(avatar_key("ana", waiting.job_id, 1, ImageFormat.PNG))
    of_others = bench.store("backups/ana/photo/of-another-program.jpg")
    assert await bench.sweeper().sweep() == 2
    assert bench.keys() == kept | {of_running, of_others}


async def test_every_image_that_was_published_stays(bench: Bench) -> None:
    job = replace(bench.job(), parameters=GenerationParameters(seed=1, variants=3)).start(NOON)
    for index in (0, 2):
        image = a_variant(job, index)
        bench.store(image.stored.key)
        job = job.publish(image, 1)
    bench.records.jobs[job.job_id] = job.cancel(NOON)
    kept = bench.keys()
    bench.store(avatar_key("ana", job.job_id, 1, ImageFormat.PNG, 1))
    assert await bench.sweeper().sweep() == 1
    assert bench.keys() == kept


async def test_a_young_object_stays(bench: Bench) -> None:
    bench.store(original_key("ana", new_job_id(), "image/jpeg"))
    bench.now = datetime.now(UTC) + timedelta(days=1)
    assert await bench.sweeper().sweep() == 0
    assert len(bench.keys()) == 1


async def test_objects_of_another_shards_customers_stay(bench: Bench) -> None:
    bench.store(original_key("ana", new_job_id(), "image/jpeg"))
    ben = bench.store(original_key("ben", new_job_id(), "image/jpeg"))
    assert await bench.sweeper("ana").sweep() == 1
    assert bench.keys() == {ben}


async def test_nothing_is_removed_where_the_record_knows_too_little(bench: Bench) -> None:
    """As after a start with another database: the photos of all customers would go."""
    bench.finished_job()
    for _ in range(4):
        bench.store(original_key("ana", new_job_id(), "image/jpeg"))
    sweeper = bench.sweeper()
    sweeper.MIN_SUSPICIOUS_ORPHANS = 3
    assert await sweeper.sweep() == 0
    assert len(bench.keys()) == 6


async def test_nothing_is_removed_while_the_database_is_away(bench: Bench) -> None:
    bench.store(original_key("ana", new_job_id(), "image/jpeg"))
    bench.records.down = True
    with pytest.raises(DatabaseUnavailable):
        await bench.sweeper().sweep()
    assert len(bench.keys()) == 1


async def test_an_upload_that_is_under_way_stays_whatever_the_clock_says(bench: Bench) -> None:
    job_id = new_job_id()
    original = bench.store(original_key("ana", job_id, "image/png"))
    sweeper = bench.sweeper()
    sweeper.CONFIRMATION_DELAY_SECONDS = 0.2
    sweeping = asyncio.create_task(sweeper.sweep())
    await wait_until(lambda: bench.records.objects_asked)
    bench.records.jobs[job_id] = a_job(job_id=job_id, original=an_image(key=original))
    assert await sweeping == 0
    assert bench.keys() == {original}


async def test_a_sweep_removes_no_more_than_it_may(bench: Bench) -> None:
    for _ in range(7):
        bench.store(original_key("ana", new_job_id(), "image/jpeg"))
    sweeper = bench.sweeper()
    sweeper.MAX_REMOVED = 4
    assert await sweeper.sweep() == 6
    assert await sweeper.sweep() == 1


def test_a_key_tells_whose_it_is() -> None:
    assert owner_of(original_key("ana", "1", "image/png")) == ("ana", "1")
    assert owner_of("customers/ana/1") is None
    assert owner_of("customers/ana/1/deep/original.png") is None
    assert owner_of("others/ana/1/original.png") is None
