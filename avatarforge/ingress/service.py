"""What AvatarForge does for its clients, without HTTP or gRPC in it: both only carry it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import structlog

from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.domain.customers import CustomerSummary, checked_customer_id
from avatarforge.domain.errors import (
    CustomerNotFound,
    ImageNotFound,
    JobNotFound,
    ModelUnusable,
    ObjectNotFound,
)
from avatarforge.domain.identifiers import is_job_id
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.ingress.acceptance import Acceptance, Trackers
from avatarforge.ingress.health import HealthChecks
from avatarforge.ingress.submissions import read_submission
from avatarforge.ingress.view import LiveJob
from avatarforge.settings import Settings
from avatarforge.storage.interface import ObjectStorage

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ImageKind(StrEnum):
    """Which of a job's images."""

    ORIGINAL = "original"
    GENERATED = "generated"


class Records(Protocol):
    """What is read from the database; `persistence.jobs.JobRecords` keeps it. Calls block."""

    def job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None: ...

    def jobs_of(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]: ...

    def customers(self, after: str | None, limit: int) -> list[CustomerSummary]: ...

    def customer(self, customer_id: str) -> CustomerSummary | None: ...

    def ping(self) -> None: ...


class LiveView(Protocol):
    """What is known of live jobs without asking anybody; `view.LiveJobs` keeps it."""

    @property
    def lag(self) -> float: ...

    def get(self, customer_id: str, job_id: str) -> LiveJob | None: ...

    def admit(self, job: ProfilePhotoJob) -> None: ...

    async def terminal(self, customer_id: str, job_id: str, seconds: float) -> LiveJob | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Part of a customer's jobs, newest first."""

    jobs: Sequence[LiveJob]
    more: bool
    """Whether older jobs follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A customer as recorded, its latest job as it stands now."""

    summary: CustomerSummary
    latest: LiveJob | None


class ProfilePhotos:
    """The service of one ingress replica. It keeps nothing but threads; `close()` ends them."""

    MANIFEST_AGE = 30.0
    """Seconds after which the model's manifest is read again."""
    RECHECK = 1.0
    """Seconds until a job that the view does not know yet is looked up again by one who waits for it."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        storage: ObjectStorage,
        trackers: Trackers,
        live: LiveView,
        catalogue: Catalogue,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings
        self.upload_folder: Path = settings.data_dir.resolve() / "uploads"
        """Where uploads lie while they are read."""
        self.health = HealthChecks(
            {"database": records.ping, "storage": storage.check}, feed_lag=lambda: live.lag
        )
        self._catalogue = catalogue
        self._model = settings.diffusion.model
        self._manifest: Manifest | None = None
        self._manifest_read_at = 0.0
        self._records = records
        self._storage = storage
        self._live = live
        self._acceptance = Acceptance(storage, trackers, settings.upload, now)
        self._reads = ThreadPoolExecutor(settings.database.pool_size, thread_name_prefix="read")

    async def close(self) -> None:
        """Let submissions under way come to their end, then end the threads."""
        await self._acceptance.close()
        await asyncio.to_thread(self._reads.shutdown)

    # --- submitting -----------------------------------------------------------------------------------

    async def submit(
        self, customer_id: str, photo: BinaryIO, filename: str, fields: dict[str, str]
    ) -> LiveJob:
        """Keep the photo and have a job accepted for it: when this returns, both are durable.

        Raises `InvalidRequest` for a wrong field, the errors of `examine` for a photo that is none, and
        `Unavailable` errors when the promise cannot be given; then nothing is kept.
        """
        checked_customer_id(customer_id)
        submission = read_submission(fields, await self.model())
        job = await self._acceptance.accept(customer_id, submission, photo, filename)
        self._live.admit(job)
        return self._live.get(customer_id, job.job_id) or LiveJob(job=job)

    # --- following --------------------------------------------------------------------------------------

    async def status(self, customer_id: str, job_id: str, wait_seconds: float = 0) -> LiveJob:
        """The job as it stands, or as soon as it is terminal, after `wait_seconds` at the latest.

        Raises `JobNotFound`, also for another customer's job.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        left = wait_seconds
        while True:
            live = self._live.get(customer_id, job_id)
            if live is not None and left > 0:
                live = await self._live.terminal(customer_id, job_id, left)
            if live is None:
                live = LiveJob(job=await self._recorded(customer_id, job_id))
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or live.job.status.is_terminal:
                return live
            # The view has not heard of the job yet: it has just started, or its tracker is away.
            await asyncio.sleep(min(left, self.RECHECK))

    async def photos(self, customer_id: str, before: str | None, limit: int) -> Page:
        """The customer's jobs older than the job `before`. Raises `CustomerNotFound`."""
        checked_customer_id(customer_id)
        jobs = await self._read(self._records.jobs_of, customer_id, before, limit + 1)
        if not jobs:
            await self._summary(customer_id)
        return Page(jobs=[self._current(job) for job in jobs[:limit]], more=len(jobs) > limit)

    async def customers(self, after: str | None, limit: int) -> list[Stored]:
        """Customers whose ids come after `after`, byte by byte."""
        summaries = await self._read(self._records.customers, after, limit)
        return [self._stored(summary) for summary in summaries]

    async def customer(self, customer_id: str) -> Stored:
        """Raises `CustomerNotFound`."""
        return self._stored(await self._summary(checked_customer_id(customer_id)))

    # --- images ------------------------------------------------------------------------------------------

    async def image(self, customer_id: str, job_id: str, kind: ImageKind) -> StoredImage:
        """Raises `JobNotFound`, or `ImageNotFound` as long as there is none."""
        job = (await self.status(customer_id, job_id)).job
        if kind is ImageKind.ORIGINAL:
            return job.original
        if job.outcome is None:
            raise ImageNotFound(job_id, kind)
        return job.outcome.avatar

    async def signed_url(self, image: StoredImage) -> str | None:
        """Where a client may fetch the image for a while; `None` when it has to go through us."""
        storage = self.settings.storage
        if not storage.signed_urls:
            return None
        return await self._read(self._storage.signed_url, image.key, storage.signed_url_seconds)

    async def chunks(self, job_id: str, kind: ImageKind, image: StoredImage) -> Iterator[bytes]:
        """The image's bytes; a blocking iterator. Raises `ImageNotFound` when storage has lost them."""
        try:
            return await self._read(self._storage.stream, image.key)
        except ObjectNotFound as error:
            log.error("object of a recorded image is missing", key=image.key, job_id=job_id)
            raise ImageNotFound(job_id, kind) from error

    # --- models ------------------------------------------------------------------------------------------

    def use_model(self, name: str) -> None:
        """From now on this model's styles and defaults count, once its manifest could be read."""
        self._model = name
        self._manifest_read_at = float("-inf")

    async def model(self) -> Manifest:
        """The configured model's manifest, some seconds old at most.

        Raises `ModelUnusable` if it never could be read; later it stays as it was while it is broken.
        """
        time = asyncio.get_running_loop().time()
        if self._manifest is None or time - self._manifest_read_at >= self.MANIFEST_AGE:
            self._manifest = await self._read_manifest()
            self._manifest_read_at = time
        return self._manifest

    async def _read_manifest(self) -> Manifest:
        try:
            return await self._read(self._catalogue.manifest, self._model)
        except ModelUnusable as error:
            if self._manifest is None:
                raise
            log.warning("manifest cannot be read any more", model=error.model, reason=error.reason)
            return self._manifest

    # --- helpers -----------------------------------------------------------------------------------------

    async def _recorded(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        checked_customer_id(customer_id)
        if not is_job_id(job_id):
            raise JobNotFound(customer_id, job_id)
        job = await self._read(self._records.job, customer_id, job_id)
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return job

    async def _summary(self, customer_id: str) -> CustomerSummary:
        summary = await self._read(self._records.customer, customer_id)
        if summary is None:
            raise CustomerNotFound(customer_id)
        return summary

    def _stored(self, summary: CustomerSummary) -> Stored:
        latest = None if summary.latest is None else self._current(summary.latest)
        return Stored(summary=summary, latest=latest)

    def _current(self, job: ProfilePhotoJob) -> LiveJob:
        """The recorded job with what only the view knows, unless the view is behind."""
        live = self._live.get(job.customer_id, job.job_id)
        return live if live is not None and live.job.seq >= job.seq else LiveJob(job=job)

    async def _read(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, call, *arguments)
