"""The REST application over a real SQLite record and a folder, with a tracker that lives in memory."""

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import httpx
from fastapi import FastAPI
from PIL import Image

from avatarforge.access.authorizer import Authorizer
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.errors import AvatarForgeError, StorageFull
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import EventKind
from avatarforge.ingress.app import create_api
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.deliveries import DeliveryRepository
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import Settings, load_settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.keys import avatar_key
from avatarforge.telemetry.aggregation import MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.tracker.availability import DatabaseOutage, StartupGate
from avatarforge.tracker.eta import Forecast
from avatarforge.tracker.feed import Feed, FeedBatch, FeedCursor
from tests.factories import a_variant, an_image, an_outcome
from tests.keys import an_authorizer
from tests.waiting import wait_until

A_SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
"""What webhooks are signed with."""


class TrackerTwin:
    """Commits to the record and tells the feed as a tracker does; jobs move when the test says so."""

    shards = 1

    def __init__(self, records: JobRepository) -> None:
        self._records = records
        self._epoch = records.claim_shard(0)
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self.reports: tuple[ReplicaReport, ...] = ()
        self.refusal: AvatarForgeError | None = None
        """Raised for what is submitted."""
        gate = StartupGate(1, DatabaseOutage(0))
        gate.open()
        self.feed = Feed(
            gate,
            1000,
            load_changes=self._no_older,
            jobs=lambda: list(self._jobs.values()),
            forecast=self._forecast,
            reports=lambda: self.reports,
        )
        self.feed.start_after("twin", 0)

    def _forecast(self) -> Forecast:
        order = tuple(self._jobs)
        return Forecast(order=order, seconds={job_id: 2.0 * place for place, job_id in enumerate(order, 1)})

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        if self.refusal is not None:
            raise self.refusal
        return self.commit(new.job, EventKind.SUBMITTED)

    def retract(self, customer_id: str, job_id: str) -> None:
        """Nothing is kept that was refused."""

    async def read_feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        return await self.feed.read(cursor, wait)

    async def add_metrics(self, report: MetricsReport) -> None:
        """Nothing is added up here."""

    async def read_metrics(self) -> dict[int, ShardMetrics | None]:
        return {0: None}

    def commit(self, job: ProfilePhotoJob, kind: EventKind) -> ProfilePhotoJob:
        change = JobChange(job=job, event=job.event(kind, job.finished_at or job.created_at))
        [seq] = self._records.commit(0, self._epoch, [change])
        committed = change.with_seq(seq)
        self._jobs[job.job_id] = committed.job
        self.feed.on_change(committed)
        return committed.job

    async def _no_older(self, seq: int) -> Sequence[JobChange]:
        raise AssertionError("the twin keeps every change")


class CrowdedFolder(FolderStorage):
    """A folder whose disk is full when the test says so."""

    full = False

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        super().put(key, content, media_type)
        if self.full:
            self.delete(key)
            raise StorageFull("no space left on device")


@dataclass(frozen=True, kw_only=True)
class Rest:
    """All the parts, within reach of the test."""

    client: httpx.AsyncClient
    api: FastAPI
    settings: Settings
    records: JobRepository
    storage: CrowdedFolder
    tracker: TrackerTwin
    live: JobCache
    photos: ProfilePhotoService
    authorizer: Authorizer

    async def submitted(self, customer_id: str, photo: bytes, **fields: str) -> ProfilePhotoJob:
        """A job that was accepted."""
        answer = await self.post(customer_id, photo, **fields)
        assert answer.status_code == 202, answer.text
        live = self.live.get(customer_id, answer.json()["jobId"])
        assert live is not None
        return live.job

    async def post(self, customer_id: str, photo: bytes, **fields: str) -> httpx.Response:
        files = {"photo": ("portrait.jpg", photo, "image/jpeg")}
        return await self.client.post(f"/customers/{customer_id}", files=files, data=fields)

    def kept(self) -> list[str]:
        """All that a refused upload may have left behind: objects, temporary files, customers, jobs."""
        uploads = self.photos.upload_folder
        return [
            *(stored.key for stored in self.storage.list("")),
            *(path.name for path in (uploads.iterdir() if uploads.exists() else ())),
            *(customer.customer_id for customer in self.records.list_customers(None, 10)),
            *(job.job_id for job in self.records.list_unfinished(0)),
        ]


@cache
def empty_database() -> bytes:
    """A database with this release's schema and no rows: migrated once, copied for each test."""
    with TemporaryDirectory() as folder:
        upgrade(f"sqlite:///{folder}/avatarforge.db")
        return Path(folder, "avatarforge.db").read_bytes()


@asynccontextmanager
async def running_rest(folder: Path, **arguments: Any) -> AsyncIterator[Rest]:
    secret = {"secrets": A_SECRET}
    settings = load_settings({"data_dir": str(folder), "webhook": secret, **arguments}, environ={})
    database = folder / "avatarforge.db"
    if not database.exists():
        database.write_bytes(empty_database())
    records = JobRepository(open_engine(settings.database, settings.database_url))
    storage = CrowdedFolder(settings.storage_folder)
    tracker = TrackerTwin(records)
    live = JobCache(tracker, settings.ingress)
    live.start()
    deliveries = DeliveryRepository(open_engine(settings.database, settings.database_url))
    photos = ProfilePhotoService(settings, records, storage, tracker, live, Catalogue(), deliveries)
    authorizer = an_authorizer(settings)
    api = create_api(photos, authorizer)
    try:
        await wait_until(lambda: live.lag < 10)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(api), base_url="http://testserver", timeout=30
        ) as client:
            yield Rest(
                client=client,
                api=api,
                settings=settings,
                records=records,
                storage=storage,
                tracker=tracker,
                live=live,
                photos=photos,
                authorizer=authorizer,
            )
    finally:
        await photos.close()
        await live.stop()
        records.close()


def progressed(rest: Rest, job: ProfilePhotoJob, step: int, total_steps: int) -> None:
    rest.tracker.feed.on_progress(job.job_id, GenerationProgress(step=step, total_steps=total_steps))


@cache
def a_jpeg(width: int = 96, height: int = 64) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(content, "JPEG", quality=90)
    return content.getvalue()


async def finished(rest: Rest, job: ProfilePhotoJob, avatar: bytes = b"\x89PNG avatar") -> ProfilePhotoJob:
    """The job DONE, its avatar in storage; the view has heard of it."""
    started = rest.tracker.commit(job.start(job.created_at + timedelta(seconds=1)), EventKind.STARTED)
    key = avatar_key(job.customer_id, job.job_id, started.attempt, job.parameters.format)
    rest.storage.put(key, io.BytesIO(avatar), "image/png")
    image = an_image(
        key=key, media_type="image/png", size=len(avatar), sha256=hashlib.sha256(avatar).hexdigest()
    )
    done = started.complete(an_outcome(avatar=image), job.created_at + timedelta(seconds=3))
    committed = rest.tracker.commit(done, EventKind.DONE)
    await rest.live.wait_for(job.customer_id, job.job_id, lambda current: current.status.is_terminal, 10)
    return committed


async def published(rest: Rest, job: ProfilePhotoJob, *avatars: bytes) -> ProfilePhotoJob:
    """The job of several images as it runs with these, in storage; the view has heard of it."""
    running = rest.tracker.commit(job.start(job.created_at), EventKind.STARTED)
    for index, avatar in enumerate(avatars):
        sha256 = hashlib.sha256(avatar).hexdigest()
        image = a_variant(running, index, size=len(avatar), sha256=sha256)
        rest.storage.put(image.stored.key, io.BytesIO(avatar), "image/png")
        running = rest.tracker.commit(running.publish(image, running.attempt), EventKind.IMAGE)
    await rest.live.wait_for(job.customer_id, job.job_id, lambda seen: seen.seq >= running.seq, 10)
    return running


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    assert set(document) >= {"type", "title", "detail", "instance", "code"}
    return document
