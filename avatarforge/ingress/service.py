"""The service that REST and gRPC carry, without HTTP or gRPC in it."""

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

import structlog

from avatarforge.background import BlockingPool
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.domain.changes import KnownKey
from avatarforge.domain.customers import CustomerSummary, validate_customer_id
from avatarforge.domain.deliveries import DeliveryReport
from avatarforge.domain.errors import (
    CustomerNotFound,
    DeliveryNotFound,
    ImageNotFound,
    JobNotFinished,
    JobNotFound,
    ObjectNotFound,
    TooManyCrops,
    TooManyUploads,
)
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob, StoredImage, is_job_id
from avatarforge.imaging.crop import cut
from avatarforge.imaging.decode import load_upright
from avatarforge.ingress.health import HealthChecks
from avatarforge.ingress.limits import ConcurrencyLimit
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.live.streams import EventLog, JobStreams
from avatarforge.ingress.metrics_endpoint import MetricsEndpoint, OpenStreams
from avatarforge.ingress.served_model import ServedModel
from avatarforge.ingress.upload.form import Submission, read_submission, validate_key
from avatarforge.ingress.upload.submit import FoundCrop, UploadSubmitter, hold_key, name_command
from avatarforge.messages import LiveJob
from avatarforge.persistence.database import limit_wait
from avatarforge.persistence.deliveries import DeliveryRepository
from avatarforge.persistence.jobs import JobRepository
from avatarforge.settings import Settings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.client import TrackerClient
from avatarforge.webhooks.address_policy import check_callback_url

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ImageKind(StrEnum):
    """The kinds of a job's images."""

    ORIGINAL = "original"
    GENERATED = "generated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A job that was accepted, now or under the same idempotency key before."""

    live: LiveJob
    replayed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundImage:
    """One of a job's images."""

    stored: StoredImage
    made_at: datetime
    may_change: bool = False
    """Whether another image may stand in its place later: of several the client may keep another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Part of a customer's jobs, newest first."""

    jobs: Sequence[LiveJob]
    more: bool
    """Whether older jobs follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomerDetails:
    """A customer as recorded, its latest job as it stands now."""

    summary: CustomerSummary
    latest: LiveJob | None


class ProfilePhotoService:
    """The service of one ingress replica. It keeps nothing but threads; `close()` ends them."""

    MAX_SQUARE_SIDE = 1024
    """Pixels of a side that `crop_original` makes at most."""
    MAX_CONCURRENT_SQUARES = 2
    """Squares that `crop_original` makes at once: each needs memory for the photo's pixels. More wait."""
    MAX_CROPS = 8
    """Photos that are read for `find_crop` or wait for it: a few of the uploads, so that many leave room for
    those that become jobs."""
    MAX_CONCURRENT_READS = 8
    """Of storage and of manifests."""
    RECHECK_INTERVAL_SECONDS = 1.0
    """Until a long poll looks up a job again that the cache does not know yet."""

    user_config_faults: tuple[str, ...] = ()
    """A sentence for each name and value of Ingress' `user_config` that is wrong and left out."""

    def __init__(
        self,
        settings: Settings,
        records: JobRepository,
        storage: ObjectStorage,
        trackers: TrackerClient,
        live: JobCache,
        catalogue: Catalogue,
        deliveries: DeliveryRepository,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        registry: MetricsRegistry | None = None,
    ) -> None:
        """`registry` holds this replica's metrics."""
        self.settings = settings
        self.registry = registry or MetricsRegistry()
        live.register_gauges(self.registry)
        self.open_streams = OpenStreams(self.registry)
        self.metrics_endpoint = MetricsEndpoint(self.registry, trackers)
        self.health = HealthChecks(
            {"database": records.ping, "storage": storage.check},
            feed_lag=lambda: live.lag,
            tracker_outage=lambda: live.outage,
        )
        self.upload_limit = ConcurrencyLimit(settings.ingress.max_uploads, TooManyUploads)
        """Limits uploads that are read and stored."""
        self.crop_limit = ConcurrencyLimit(self.MAX_CROPS, TooManyCrops)
        """Limits those of them that `find_crop` is asked about."""
        self.model = ServedModel(settings.diffusion.model, catalogue, self.read, lambda: live.replicas)
        self._records = records
        self._storage = storage
        self.live = live
        self._trackers = trackers
        self._deliveries = deliveries
        self._submitter = UploadSubmitter(storage, trackers, settings.upload, now)
        events = EventLog(records, trackers.shards, self.status, self.query)
        self.streams = JobStreams(live, events, settings.ingress)
        self._square_slots = asyncio.Semaphore(self.MAX_CONCURRENT_SQUARES)
        self._pool = BlockingPool(self.MAX_CONCURRENT_READS, "read")
        # Others, so that images are read while the database hangs.
        self._database_pool = BlockingPool(settings.database.pool_size, "query")

    @cached_property
    def upload_folder(self) -> Path:
        """The folder of large uploads while they are read."""
        return self.settings.data_dir.resolve() / "uploads"

    async def close(self) -> None:
        """Wait for submissions under way, then end the threads."""
        await self._submitter.close()
        await self._pool.close()
        await self._database_pool.close()

    # --- submitting -----------------------------------------------------------------------------------

    async def submit(
        self,
        customer_id: str,
        photo: BinaryIO,
        filename: str,
        form: dict[str, str],
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Keep the photo and have a job accepted for it: when this returns, both are durable.

        Raises `InvalidRequest` for a wrong field, the errors of `clean_photo` for a photo that is none,
        `IdempotencyKeyReused` and `IdempotencyKeyInFlight`, `BacklogFull`, and `Unavailable` errors when
        the promise cannot be given; then nothing is kept.
        """
        validate_customer_id(customer_id)
        submission = read_submission(form, await self.model.manifest())
        if submission.callback_url is not None:
            await check_callback_url(submission.callback_url, self.settings.webhook)
        if idempotency_key is None:
            return Submitted(live=await self.submit_checked(customer_id, submission, photo, filename))
        key, began = validate_key(idempotency_key), time.perf_counter()
        job = await self._submitter.submit_once(customer_id, submission, photo, filename, form, key)
        return await self._get_submitted(customer_id, job, began)

    async def submit_checked(
        self, customer_id: str, submission: Submission, photo: BinaryIO, filename: str
    ) -> LiveJob:
        """Submit a photo with fields that `read_submission` has checked. Raises the errors of `submit`."""
        began = time.perf_counter()
        return self._admit(await self._submitter.submit(customer_id, submission, photo, filename), began)

    async def find_crop(self, photo: BinaryIO, filename: str, *, preview: bool) -> FoundCrop:
        """Find the square that the photo would be cropped to. Nothing is kept. Raises the errors of
        `clean_photo`."""
        return await self._submitter.find_crop(photo, filename, preview=preview)

    async def retry(self, customer_id: str, job_id: str, idempotency_key: str | None = None) -> Submitted:
        """Submit a new job with the photo and the parameters of one that has ended.

        Raises `JobNotFound`, `JobNotFinished`, `ImageNotFound` when the original is gone, and the errors of
        `submit`.
        """
        job = (await self.status(customer_id, job_id)).job
        if not job.status.is_terminal:
            raise JobNotFinished(job_id, job.status)
        try:
            if idempotency_key is None:
                return Submitted(live=self._admit(await self._submitter.resubmit(job)))
            new = await self._submitter.resubmit_once(job, validate_key(idempotency_key))
        except ObjectNotFound as error:
            raise ImageNotFound(job_id, ImageKind.ORIGINAL) from error
        return await self._get_submitted(customer_id, new)

    async def _get_submitted(
        self, customer_id: str, job: ProfilePhotoJob | KnownKey, began: float | None = None
    ) -> Submitted:
        if isinstance(job, KnownKey):
            return Submitted(live=await self.status(customer_id, job.job_id), replayed=True)
        return Submitted(live=self._admit(job, began))

    def _admit(self, job: ProfilePhotoJob, began: float | None = None) -> LiveJob:
        """Count and cache an accepted job; `began` is when its upload was complete, by `perf_counter`."""
        if began is not None:
            self.registry.observe(metrics.UPLOAD_ACCEPT_DURATION, time.perf_counter() - began)
        self.registry.count(metrics.ACCEPTED_BYTES, by=job.original.size)
        return self.live.put(job)

    # --- ending -----------------------------------------------------------------------------------------

    async def cancel(self, customer_id: str, job_id: str) -> LiveJob:
        """Cancel the job, whether it waits or runs. Raises `JobNotFound`, and `IllegalTransition` when it has
        ended otherwise."""
        self._check_ids(customer_id, job_id)
        job = await self._trackers.execute(JobTrackerActor.cancel, customer_id, job_id)
        self.live.put(job)
        return LiveJob(job=job)

    async def erase(self, customer_id: str, job_id: str) -> None:
        """Remove the job with its images. Raises `JobNotFound`."""
        self._check_ids(customer_id, job_id)
        try:
            await self._trackers.execute(JobTrackerActor.erase, customer_id, job_id)
        except JobNotFound:
            self.live.remove(customer_id, job_id)
            raise
        self.live.remove(customer_id, job_id)

    async def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job and image. Raises `CustomerNotFound`."""
        await self._trackers.execute(JobTrackerActor.erase_customer, validate_customer_id(customer_id))
        self.live.remove_customer(customer_id)

    # --- choosing ---------------------------------------------------------------------------------------

    async def keep_image(self, customer_id: str, job_id: str, index: int) -> LiveJob:
        """Note which of the job's images the client keeps. Raises `JobNotFound`, and `InvalidRequest` for an
        image that is not there (yet)."""
        self._check_ids(customer_id, job_id)
        return self.live.put(await self._trackers.execute(JobTrackerActor.keep, customer_id, job_id, index))

    # --- following --------------------------------------------------------------------------------------

    async def status(
        self, customer_id: str, job_id: str, wait_seconds: float = 0, after: int | None = None
    ) -> LiveJob:
        """Return the job; with `wait_seconds` as soon as it is terminal, or has changed beyond the event
        `after`, and then at the latest.

        Raises `JobNotFound`, also for another customer's job.
        """

        def is_enough(job: ProfilePhotoJob) -> bool:
            return job.status.is_terminal or (after is not None and job.seq > after)

        deadline = asyncio.get_running_loop().time() + wait_seconds
        left = wait_seconds
        while True:
            live = self.live.get(customer_id, job_id)
            if live is not None and left > 0:
                live = await self.live.wait_for(customer_id, job_id, is_enough, left)
            if live is None:
                live = LiveJob(job=await self._load_job(customer_id, job_id))
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or is_enough(live.job):
                return live
            # The cache does not have the job yet: it has just started, or its tracker is away.
            await asyncio.sleep(min(left, self.RECHECK_INTERVAL_SECONDS))

    async def deliveries(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        """Return the job's webhook deliveries, oldest first. Raises `JobNotFound`."""
        await self.status(customer_id, job_id)
        return await self.query(self._deliveries.list_reports, customer_id, job_id)

    async def redeliver(
        self, customer_id: str, job_id: str, delivery_id: str, idempotency_key: str | None = None
    ) -> DeliveryReport:
        """Send a webhook again; under an idempotency key that is known only what was asked for then.

        Raises `JobNotFound`, `DeliveryNotFound`, `IdempotencyKeyReused` and `IdempotencyKeyInFlight`.
        """
        await self.status(customer_id, job_id)
        trackers, command = self._trackers, JobTrackerActor.redeliver
        if idempotency_key is None:
            await trackers.execute(command, customer_id, job_id, delivery_id, None)
        else:
            name = name_command(validate_key(idempotency_key), "redeliver", job_id, delivery_id)
            async with hold_key(trackers, customer_id, name, makes_job=False) as known:
                if known is None:
                    await trackers.execute(command, customer_id, job_id, delivery_id, name)
                else:
                    await trackers.execute(JobTrackerActor.resume_delivery, customer_id, delivery_id)
        for report in await self.query(self._deliveries.list_reports, customer_id, job_id):
            if report.delivery.delivery_id == delivery_id:
                return report
        raise DeliveryNotFound(job_id, delivery_id)

    async def photos(self, customer_id: str, before: str | None, limit: int) -> Page:
        """Return the customer's jobs older than the job `before`. Raises `CustomerNotFound`."""
        validate_customer_id(customer_id)
        jobs = await self.query(self._records.list_jobs, customer_id, before, limit + 1)
        if not jobs:
            await self._load_customer(customer_id)
        return Page(jobs=[self._current(job) for job in jobs[:limit]], more=len(jobs) > limit)

    async def find_jobs(self, id_prefix: str, limit: int) -> list[LiveJob]:
        """Return at most `limit` jobs of all customers whose ids begin so, oldest first."""
        jobs = await self.query(self._records.list_jobs_by_prefix, id_prefix, limit)
        return [self._current(job) for job in jobs]

    async def customers(self, after: str | None, limit: int) -> list[CustomerDetails]:
        """Return customers whose ids come after `after`, byte by byte."""
        summaries = await self.query(self._records.list_customers, after, limit)
        return [self._with_latest(summary) for summary in summaries]

    async def customer(self, customer_id: str) -> CustomerDetails:
        """Return one customer. Raises `CustomerNotFound`."""
        return self._with_latest(await self._load_customer(validate_customer_id(customer_id)))

    # --- images ------------------------------------------------------------------------------------------

    async def original(self, customer_id: str, job_id: str) -> FoundImage:
        """Find the photo as it was uploaded. Raises `JobNotFound`."""
        job = (await self.status(customer_id, job_id)).job
        return FoundImage(stored=job.original, made_at=job.created_at)

    async def avatar(self, customer_id: str, job_id: str, index: int | None = None) -> FoundImage:
        """Find one of the job's avatars; by default that which the client keeps, or else the first, once the
        job is DONE. Raises `JobNotFound`, or `ImageNotFound` while there is none.
        """
        job = (await self.status(customer_id, job_id)).job
        if index is None and job.outcome is None:
            raise ImageNotFound(job_id, ImageKind.GENERATED)
        image = job.find_image(index)
        if image is None:
            raise ImageNotFound(job_id, ImageKind.GENERATED, index, job.list_images())
        return FoundImage(
            stored=image.stored,
            made_at=job.finished_at or job.created_at,
            may_change=index is None and job.parameters.variants > 1,
        )

    async def sign_url(self, image: StoredImage) -> str | None:
        """Return a URL where a client may fetch the image for a while; `None` if storage signs none."""
        storage = self.settings.storage
        if not storage.signed_urls:
            return None
        return await self.read(self._storage.sign_url, image.key, storage.signed_url_seconds)

    async def stream_image(
        self, job_id: str, kind: ImageKind, image: StoredImage, part: range | None = None
    ) -> Generator[bytes]:
        """Return the bytes, or a part of them, as a blocking iterator.

        Raises `ImageNotFound` if storage has lost them.
        """
        try:
            return await self.read(partial(self._storage.stream, image.key, part=part))
        except ObjectNotFound as error:
            log.error("object of a recorded image is missing", key=image.key, job_id=job_id)
            raise ImageNotFound(job_id, kind) from error

    async def crop_original(self, customer_id: str, job_id: str) -> bytes:
        """Return the part of the photo that the avatar is made from, as a JPEG. Raises
        `JobNotFound`, `ImageNotFound` if storage has lost the photo, and `StorageUnavailable`."""
        job = (await self.status(customer_id, job_id)).job
        try:
            async with self._square_slots:
                content = await self.read(self._storage.get, job.original.key)
                return await self.read(self._encode_square, content, job.parameters)
        except ObjectNotFound as error:
            raise ImageNotFound(job_id, ImageKind.ORIGINAL) from error

    def _encode_square(self, content: bytes, parameters: GenerationParameters) -> bytes:
        photo = load_upright(content)
        width, height = parameters.size(1)
        scale = min(self.MAX_SQUARE_SIDE, *photo.size) / max(width, height)
        image = cut(photo, (round(width * scale), round(height * scale)), parameters)[0]
        encoded = BytesIO()
        image.save(encoded, "JPEG", quality=90)
        return encoded.getvalue()

    # --- helpers -----------------------------------------------------------------------------------------

    def _check_ids(self, customer_id: str, job_id: str) -> None:
        validate_customer_id(customer_id)
        if not is_job_id(job_id):
            raise JobNotFound(customer_id, job_id)

    async def _load_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        self._check_ids(customer_id, job_id)
        job = await self.query(self._records.find_job, customer_id, job_id)
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return job

    async def _load_customer(self, customer_id: str) -> CustomerSummary:
        summary = await self.query(self._records.find_customer, customer_id)
        if summary is None:
            raise CustomerNotFound(customer_id)
        return summary

    def _with_latest(self, summary: CustomerSummary) -> CustomerDetails:
        latest = None if summary.latest is None else self._current(summary.latest)
        return CustomerDetails(summary=summary, latest=latest)

    def _current(self, job: ProfilePhotoJob) -> LiveJob:
        """Add to a recorded job what only the cache knows, unless the cache is behind."""
        live = self.live.get(job.customer_id, job.job_id)
        return live if live is not None and live.job.seq >= job.seq else LiveJob(job=job)

    async def query(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a call of the database returns, made in one of its threads. Raises
        `DatabaseUnavailable`, also if it takes too long."""
        return await limit_wait(self._database_pool.run(call, *args, **kwargs))

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a blocking call returns, made in one of the threads for reads."""
        return await self._pool.run(call, *args, **kwargs)
