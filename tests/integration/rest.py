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

from avatarforge.access.gate import Gate
from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.errors import AvatarForgeError, StorageFull
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.ingress.api import create_api
from avatarforge.ingress.service import ProfilePhotos
from avatarforge.ingress.view import LiveJobs
from avatarforge.persistence import JobRecords, open_engine
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import Settings, load_settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.keys import avatar_key
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.reports import Report
from avatarforge.tracker.estimates import Forecast
from avatarforge.tracker.feed import Feed, FeedBatch, FeedCursor
from tests.factories import an_image, an_outcome
from tests.keys import a_gate
from tests.waiting import wait_until

A_SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
"""What webhooks are signed with."""


class TrackerTwin:
    """Commits to the record and tells the feed as a tracker does; jobs move when the test says so."""

    shards = 1

    def __init__(self, records: JobRecords) -> None:
        self._records = records
        self._epoch = records.claim_shard(0)
        self._jobs: dict[str, ProfilePhotoJob] = {}
        self.reports: tuple[ReplicaReport, ...] = ()
        self.refusal: AvatarForgeError | None = None
        """Raised for what is submitted."""
        self.news = Feed(
            "twin",
            0,
            recent=1000,
            load_changes=self._no_older,
            jobs=lambda: list(self._jobs.values()),
            forecast=self._forecast,
            reports=lambda: self.reports,
        )

    def _forecast(self) -> Forecast:
        order = tuple(self._jobs)
        return Forecast(order=order, seconds={job_id: 2.0 * place for place, job_id in enumerate(order, 1)})

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        if self.refusal is not None:
            raise self.refusal
        return self.commit(new.job, EventKind.SUBMITTED)

    def disown(self, customer_id: str, job_id: str) -> None:
        """Nothing is kept that was refused."""

    async def feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        return await self.news.read(cursor, wait)

    async def report(self, report: Report) -> None:
        """Nothing is added up here."""

    async def figures(self) -> dict[int, TrackerFigures | None]:
        return {0: None}

    def commit(self, job: ProfilePhotoJob, kind: EventKind) -> ProfilePhotoJob:
        change = JobChange(job=job, event=job.event(kind, job.finished_at or job.created_at))
        [seq] = self._records.commit(0, self._epoch, [change])
        committed = change.numbered(seq)
        self._jobs[job.job_id] = committed.job
        self.news.changed(committed)
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
    records: JobRecords
    storage: CrowdedFolder
    tracker: TrackerTwin
    live: LiveJobs
    photos: ProfilePhotos
    gate: Gate

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
            *(customer.customer_id for customer in self.records.customers(None, 10)),
            *(job.job_id for job in self.records.unfinished(0)),
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
    records = JobRecords(open_engine(settings.database, settings.database_url))
    storage = CrowdedFolder(settings.storage_folder)
    tracker = TrackerTwin(records)
    live = LiveJobs(tracker, settings.ingress)
    live.start()
    deliveries = DeliveryRecords(open_engine(settings.database, settings.database_url))
    photos = ProfilePhotos(settings, records, storage, tracker, live, Catalogue(), deliveries)
    gate = a_gate(settings)
    api = create_api(photos, gate)
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
                gate=gate,
            )
    finally:
        await photos.close()
        await live.stop()
        records.close()


def progressed(rest: Rest, job: ProfilePhotoJob, step: int, total_steps: int) -> None:
    rest.tracker.news.progressed(job.job_id, GenerationProgress(step=step, total_steps=total_steps))


@cache
def a_jpeg(width: int = 96, height: int = 64) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(content, "JPEG", quality=90)
    return content.getvalue()


async def finished(rest: Rest, job: ProfilePhotoJob, avatar: bytes = b"\x89PNG avatar") -> ProfilePhotoJob:
    """The job DONE, its avatar in storage; the view has heard of it."""
    started = rest.tracker.commit(job.started(job.created_at + timedelta(seconds=1)), EventKind.STARTED)
    key = avatar_key(job.customer_id, job.job_id, started.attempt, job.parameters.format)
    rest.storage.put(key, io.BytesIO(avatar), "image/png")
    image = an_image(
        key=key, media_type="image/png", size=len(avatar), sha256=hashlib.sha256(avatar).hexdigest()
    )
    done = started.done(an_outcome(avatar=image), job.created_at + timedelta(seconds=3))
    committed = rest.tracker.commit(done, EventKind.DONE)
    await rest.live.until(job.customer_id, job.job_id, lambda current: current.status.is_terminal, 10)
    return committed


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    assert set(document) >= {"type", "title", "detail", "instance", "code"}
    return document
