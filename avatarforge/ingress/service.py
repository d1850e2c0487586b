"""What AvatarForge does for its clients, without HTTP or gRPC in it: both only carry it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import structlog

from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.diffusion.squares import cut
from avatarforge.domain.changes import LogBounds, LoggedChange
from avatarforge.domain.customers import CustomerSummary, checked_customer_id, shard_of
from avatarforge.domain.deliveries import DeliveryReport, WebhookDelivery
from avatarforge.domain.errors import (
    CustomerNotFound,
    ImageNotFound,
    JobNotFound,
    NotFinished,
    ObjectNotFound,
    TooManyUploads,
)
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.identifiers import is_job_id
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.ingress import acceptance, scrapes
from avatarforge.ingress.acceptance import Acceptance
from avatarforge.ingress.health import HealthChecks
from avatarforge.ingress.news import LiveJob
from avatarforge.ingress.places import Places
from avatarforge.ingress.scrapes import Clients, Scrapes
from avatarforge.ingress.served_model import ServedModel
from avatarforge.ingress.streams import JobStreams, LiveNews, StreamItem
from avatarforge.ingress.submissions import Submission, checked_key, read_submission
from avatarforge.settings import Settings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.pictures import load_upright
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures
from avatarforge.webhooks.addresses import check_callback_url

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

    def events_of(
        self, customer_id: str, job_id: str | None, after: int, limit: int
    ) -> list[LoggedChange]: ...

    def log_bounds(self, shard: int) -> LogBounds: ...

    def ping(self) -> None: ...


class Deliveries(Protocol):
    """What is read of webhooks; `persistence.deliveries.DeliveryRecords` keeps it. Blocks."""

    def of_job(self, customer_id: str, job_id: str) -> list[DeliveryReport]: ...


class Trackers(acceptance.Trackers, scrapes.Trackers, Protocol):
    """Who changes jobs; `tracker.client.JobTrackers` keeps it."""

    @property
    def shards(self) -> int: ...

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob: ...

    async def erase(self, customer_id: str, job_id: str) -> None: ...

    async def erase_customer(self, customer_id: str) -> None: ...

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> WebhookDelivery: ...


class LiveView(LiveNews, Protocol):
    """What is known of live jobs without asking anybody; `view.LiveJobs` keeps it."""

    @property
    def lag(self) -> float: ...

    @property
    def waiting(self) -> int: ...

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]: ...

    def get(self, customer_id: str, job_id: str) -> LiveJob | None: ...

    def admit(self, job: ProfilePhotoJob) -> None: ...

    def forget(self, customer_id: str, job_id: str) -> None: ...

    def forget_customer(self, customer_id: str) -> None: ...

    async def until(
        self, customer_id: str, job_id: str, enough: Callable[[ProfilePhotoJob], bool], seconds: float
    ) -> LiveJob | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A job that was accepted, now or under the same idempotency key before."""

    live: LiveJob
    replayed: bool = False


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

    SQUARE_SIDE = 1024
    """Pixels of a side that `square` makes at most."""
    SQUARES = 2
    """Squares that are cut at a time: each needs memory for the photo's pixels. More wait."""
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
        deliveries: Deliveries,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        figures: Figures | None = None,
    ) -> None:
        """`figures` are what this replica counts."""
        self.settings = settings
        self.figures = figures or Figures()
        self.figures.watch(metrics.SUBSCRIBERS, lambda: live.waiting, "long_poll")
        self.figures.watch(metrics.FEED_LAG, lambda: live.lag)
        self.clients = Clients(self.figures)
        self.scrapes = Scrapes(self.figures, trackers)
        self.upload_folder: Path = settings.data_dir.resolve() / "uploads"
        """Where uploads lie while they are read."""
        self.health = HealthChecks(
            {"database": records.ping, "storage": storage.check}, feed_lag=lambda: live.lag
        )
        self.uploads = Places(settings.ingress.max_uploads, TooManyUploads)
        """Places for uploads that are read and stored."""
        self.model = ServedModel(settings.diffusion.model, catalogue, self.read, lambda: live.replicas)
        self._records = records
        self._storage = storage
        self._live = live
        self._trackers = trackers
        self._deliveries = deliveries
        self._acceptance = Acceptance(storage, trackers, settings.upload, now)
        self._streams = JobStreams(live, _Events(self, records, trackers.shards), settings.ingress)
        self._cutting = asyncio.Semaphore(self.SQUARES)
        self._reads = ThreadPoolExecutor(settings.database.pool_size, thread_name_prefix="read")

    async def close(self) -> None:
        """Let submissions under way come to their end, then end the threads."""
        await self._acceptance.close()
        await asyncio.to_thread(self._reads.shutdown)

    # --- submitting -----------------------------------------------------------------------------------

    async def submit(
        self,
        customer_id: str,
        photo: BinaryIO,
        filename: str,
        fields: dict[str, str],
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Keep the photo and have a job accepted for it: when this returns, both are durable.

        Raises `InvalidRequest` for a wrong field, the errors of `examine` for a photo that is none,
        `IdempotencyKeyReused` and `IdempotencyKeyInFlight`, `BacklogFull`, and `Unavailable` errors when
        the promise cannot be given; then nothing is kept.
        """
        checked_customer_id(customer_id)
        submission = await self._checked(fields)
        if idempotency_key is None:
            return await self._accepted(customer_id, submission, photo, filename)
        key, begun = checked_key(idempotency_key), time.perf_counter()
        accepted = await self._acceptance.accept_once(customer_id, submission, photo, filename, fields, key)
        if isinstance(accepted, KnownKey):
            return Submitted(live=await self.status(customer_id, accepted.job_id), replayed=True)
        return self._uploaded(accepted, begun)

    async def submit_checked(
        self, customer_id: str, submission: Submission, photo: BinaryIO, filename: str
    ) -> LiveJob:
        """As `submit`, for wishes that `read_submission` has checked."""
        return (await self._accepted(customer_id, submission, photo, filename)).live

    async def retry(self, customer_id: str, job_id: str) -> LiveJob:
        """A new job with the photo and the wishes of one that has ended.

        Raises `JobNotFound`, `NotFinished`, `ImageNotFound` when the original is gone, and as `submit`.
        """
        job = (await self.status(customer_id, job_id)).job
        if not job.status.is_terminal:
            raise NotFinished(job_id, job.status)
        try:
            return self._admitted(await self._acceptance.accept_again(job)).live
        except ObjectNotFound as error:
            raise ImageNotFound(job_id, ImageKind.ORIGINAL) from error

    async def _checked(self, fields: dict[str, str]) -> Submission:
        submission = read_submission(fields, await self.model.manifest())
        if submission.callback_url is not None:
            await check_callback_url(submission.callback_url, self.settings.webhook)
        return submission

    async def _accepted(
        self, customer_id: str, submission: Submission, photo: BinaryIO, filename: str
    ) -> Submitted:
        begun = time.perf_counter()
        job = await self._acceptance.accept(customer_id, submission, photo, filename)
        return self._uploaded(job, begun)

    def _uploaded(self, job: ProfilePhotoJob, begun: float) -> Submitted:
        """Accepted since `begun`, by the counter of `time.perf_counter`."""
        self.figures.observe(metrics.ACCEPT_SECONDS, time.perf_counter() - begun)
        return self._admitted(job)

    def _admitted(self, job: ProfilePhotoJob) -> Submitted:
        self.figures.count(metrics.ACCEPTED_BYTES, by=job.original.size)
        self._live.admit(job)
        return Submitted(live=self._live.get(job.customer_id, job.job_id) or LiveJob(job=job))

    # --- ending -----------------------------------------------------------------------------------------

    async def cancel(self, customer_id: str, job_id: str) -> LiveJob:
        """End the job, whether it waits or runs. Raises `JobNotFound`, and `IllegalTransition` when it has
        ended otherwise."""
        self._check_ids(customer_id, job_id)
        job = await self._trackers.cancel(customer_id, job_id)
        self._live.admit(job)
        return LiveJob(job=job)

    async def erase(self, customer_id: str, job_id: str) -> None:
        """Remove the job with its images. Raises `JobNotFound`."""
        self._check_ids(customer_id, job_id)
        try:
            await self._trackers.erase(customer_id, job_id)
        except JobNotFound:
            self._live.forget(customer_id, job_id)
            raise
        self._live.forget(customer_id, job_id)

    async def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job and image. Raises `CustomerNotFound`."""
        await self._trackers.erase_customer(checked_customer_id(customer_id))
        self._live.forget_customer(customer_id)

    # --- following --------------------------------------------------------------------------------------

    async def status(
        self, customer_id: str, job_id: str, wait_seconds: float = 0, after: int | None = None
    ) -> LiveJob:
        """The job as it stands; with `wait_seconds` as soon as it is terminal, or has changed beyond the
        event `after`, and then at the latest.

        Raises `JobNotFound`, also for another customer's job.
        """

        def enough(job: ProfilePhotoJob) -> bool:
            return job.status.is_terminal or (after is not None and job.seq > after)

        deadline = asyncio.get_running_loop().time() + wait_seconds
        left = wait_seconds
        while True:
            live = self._live.get(customer_id, job_id)
            if live is not None and left > 0:
                live = await self._live.until(customer_id, job_id, enough, left)
            if live is None:
                live = LiveJob(job=await self._recorded(customer_id, job_id))
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or enough(live.job):
                return live
            # The view has not heard of the job yet: it has just started, or its tracker is away.
            await asyncio.sleep(min(left, self.RECHECK))

    def unfinished(self, customer_id: str) -> tuple[LiveJob, ...]:
        """The customer's jobs that wait or run, oldest first, as far as the view knows them."""
        return self._live.unfinished(customer_id)

    def follow(
        self, customer_id: str, job_id: str | None, after: int | None, *, quiet_seconds: float
    ) -> AsyncGenerator[StreamItem | None, None]:
        """See `JobStreams.follow`."""
        return self._streams.follow(customer_id, job_id, after, quiet_seconds=quiet_seconds)

    async def deliveries(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        """The job's webhook deliveries, oldest first. Raises `JobNotFound`."""
        await self.status(customer_id, job_id)
        return await self.read(self._deliveries.of_job, customer_id, job_id)

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> DeliveryReport:
        """Send a webhook again. Raises `JobNotFound` and `DeliveryNotFound`."""
        await self.status(customer_id, job_id)
        delivery = await self._trackers.redeliver(customer_id, job_id, delivery_id)
        reports = await self.read(self._deliveries.of_job, customer_id, job_id)
        return next(
            (report for report in reports if report.delivery.delivery_id == delivery_id),
            DeliveryReport(delivery=delivery, attempts=()),
        )

    async def photos(self, customer_id: str, before: str | None, limit: int) -> Page:
        """The customer's jobs older than the job `before`. Raises `CustomerNotFound`."""
        checked_customer_id(customer_id)
        jobs = await self.read(self._records.jobs_of, customer_id, before, limit + 1)
        if not jobs:
            await self._summary(customer_id)
        return Page(jobs=[self._current(job) for job in jobs[:limit]], more=len(jobs) > limit)

    async def customers(self, after: str | None, limit: int) -> list[Stored]:
        """Customers whose ids come after `after`, byte by byte."""
        summaries = await self.read(self._records.customers, after, limit)
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
        return await self.read(self._storage.signed_url, image.key, storage.signed_url_seconds)

    async def chunks(self, job_id: str, kind: ImageKind, image: StoredImage) -> Generator[bytes]:
        """The image's bytes; a blocking iterator. Raises `ImageNotFound` when storage has lost them."""
        try:
            return await self.read(self._storage.stream, image.key)
        except ObjectNotFound as error:
            log.error("object of a recorded image is missing", key=image.key, job_id=job_id)
            raise ImageNotFound(job_id, kind) from error

    async def square(self, customer_id: str, job_id: str) -> bytes:
        """The part of the photo that the avatar is made from, as a JPEG. Raises as `image` and `chunks`."""
        job = (await self.status(customer_id, job_id)).job
        try:
            async with self._cutting:
                return await self.read(self._cut, job)
        except ObjectNotFound as error:
            raise ImageNotFound(job_id, ImageKind.ORIGINAL) from error

    def _cut(self, job: ProfilePhotoJob) -> bytes:
        photo = load_upright(self._storage.get(job.original.key))
        picture = cut(photo, min(self.SQUARE_SIDE, *photo.size), cut_face=job.parameters.cut_face)[0]
        content = BytesIO()
        picture.save(content, "JPEG", quality=90)
        return content.getvalue()

    # --- helpers -----------------------------------------------------------------------------------------

    def _check_ids(self, customer_id: str, job_id: str) -> None:
        checked_customer_id(customer_id)
        if not is_job_id(job_id):
            raise JobNotFound(customer_id, job_id)

    async def _recorded(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        self._check_ids(customer_id, job_id)
        job = await self.read(self._records.job, customer_id, job_id)
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return job

    async def _summary(self, customer_id: str) -> CustomerSummary:
        summary = await self.read(self._records.customer, customer_id)
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

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """What the replicas told of themselves last."""
        return self._live.replicas

    async def read(self, call: Callable[..., T], *arguments: Any) -> T:
        """What a blocking call returns, made in one of the threads for reads."""
        return await asyncio.get_running_loop().run_in_executor(self._reads, call, *arguments)


class _Events:
    """The record as `JobStreams` asks for it."""

    def __init__(self, photos: ProfilePhotos, records: Records, shards: int) -> None:
        self._photos = photos
        self._records = records
        self._shards = shards

    async def job(self, customer_id: str, job_id: str) -> LiveJob:
        return await self._photos.status(customer_id, job_id)

    async def bounds(self, customer_id: str) -> LogBounds:
        shard = shard_of(customer_id, self._shards)
        return await self._photos.read(self._records.log_bounds, shard)

    async def page(self, customer_id: str, job_id: str | None, after: int, limit: int) -> list[LoggedChange]:
        return await self._photos.read(self._records.events_of, customer_id, job_id, after, limit)
