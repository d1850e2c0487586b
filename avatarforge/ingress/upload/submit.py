"""Turns a photo into a durable job: object first, then the commit, and neither without the other."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from io import BytesIO
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

import structlog
from structlog.contextvars import bound_contextvars

from avatarforge.background import BlockingPool
from avatarforge.domain.changes import IdempotencyKey, KnownKey, NewJob
from avatarforge.domain.errors import IdempotencyKeyReused, Unavailable
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob, StoredImage, new_job_id
from avatarforge.imaging.crop import Square, extract, find_square
from avatarforge.imaging.decode import MAX_DECODED_PIXELS, load_upright
from avatarforge.ingress.limits import PixelBudget
from avatarforge.ingress.upload.form import Submission
from avatarforge.ingress.upload.inspect import CleanPhoto, UndecodedPhoto, inspect_photo
from avatarforge.settings import UploadSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import original_key
from avatarforge.telemetry import traces
from avatarforge.telemetry.logs import get_request_id
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.client import TrackerClient

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_PREVIEW_SIDE = 512
"""Pixels of a side of the square that `find_crop` shows."""

Method = Callable[Concatenate["UploadSubmitter", P], Coroutine[Any, Any, T]]


def _finish(method: "Method[P, T]") -> "Method[P, T]":
    """Have the method end its work when its caller is cancelled, who is held until then.

    A thread cannot be stopped, it reads the photo, and a job that was committed needs its object.
    """

    @wraps(method)
    async def finish(self: "UploadSubmitter", /, *args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(method(self, *args, **kwargs), name="submit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("abandoned submission failed", reason=str(error))
            raise

    return finish


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCrop:
    """The square that a photo would be cropped to."""

    square: Square
    """In pixels of the whole photo, as people see it."""
    width: int
    height: int
    """The photo's pixels."""
    preview: bytes | None
    """The square as a small JPEG."""


class UploadSubmitter:
    """Submits uploads, `MAX_CONCURRENT_PHOTOS` at a time. `close()` ends the threads."""

    MAX_CONCURRENT_PHOTOS = 8
    """Photos that are inspected and stored at a time: each needs memory for its pixels. More wait."""
    MAX_CONCURRENT_CROPS = 2
    """Of them, those of `find_crop`, which takes a second for some. More wait."""

    def __init__(
        self,
        storage: ObjectStorage,
        trackers: TrackerClient,
        limits: UploadSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._storage = storage
        self._trackers = trackers
        self._limits = limits
        self._now = now
        self._pixel_budget = PixelBudget(limits.max_decoding_pixels)
        self._pool = BlockingPool(self.MAX_CONCURRENT_PHOTOS, "upload")
        self._crop_slots = asyncio.Semaphore(self.MAX_CONCURRENT_CROPS)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the uploads under way, and end the threads."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()

    @_finish
    async def submit(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        key: IdempotencyKey | None = None,
    ) -> ProfilePhotoJob:
        """Return the job as committed, its original in storage; on any error neither of them stays.

        Raises the errors of `inspect_photo` and `Unavailable` errors.
        """
        job_id = new_job_id()
        with bound_contextvars(job_id=job_id, customer_id=customer_id):
            with traces.span("store original"):
                original = await self._store(customer_id, job_id, photo, filename)
            job = ProfilePhotoJob(
                job_id=job_id,
                customer_id=customer_id,
                parameters=_with_origin(submission.parameters),
                original=original,
                created_at=self._now(),
                priority=submission.priority,
                callback_url=submission.callback_url,
            )
            return await self._commit(NewJob(job=job, idempotency_key=key))

    @_finish
    async def submit_once(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        form: Mapping[str, str],
        key: str,
    ) -> ProfilePhotoJob | KnownKey:
        """Submit under an idempotency key; returns what the key stands for if it is known.

        Raises the errors of `submit`, `IdempotencyKeyReused` and `IdempotencyKeyInFlight`.
        """
        name = IdempotencyKey(key=key, fingerprint=await self._pool.run(compute_fingerprint, photo, form))
        async with hold_key(self._trackers, customer_id, name) as known:
            return known or await self.submit(customer_id, submission, photo, filename, name)

    @_finish
    async def find_crop(self, photo: BinaryIO, filename: str, *, preview: bool) -> FoundCrop:
        """Find the square that the photo would be cropped to. Nothing is kept.

        Raises the errors of `inspect_photo`.
        """
        async with self._crop_slots:
            inspected = await self._pool.run(inspect_photo, photo, filename, self._limits)
            if isinstance(inspected, UndecodedPhoto):
                pixels, clean = inspected.pixels, inspected.clean
            else:
                pixels, clean = min(inspected.width * inspected.height, MAX_DECODED_PIXELS), lambda: inspected
            async with self._pixel_budget.reserve(pixels):
                return await self._pool.run(lambda: _find_crop(clean(), preview=preview))

    @_finish
    async def resubmit_once(self, job: ProfilePhotoJob, key: str) -> ProfilePhotoJob | KnownKey:
        """Resubmit under an idempotency key, as `submit_once`."""
        name = name_command(key, "retry", job.job_id)
        async with hold_key(self._trackers, job.customer_id, name) as known:
            return known or await self.resubmit(job, name)

    @_finish
    async def resubmit(self, job: ProfilePhotoJob, key: IdempotencyKey | None = None) -> ProfilePhotoJob:
        """Submit a new job with the photo and the parameters of one that has ended. Raises the errors of
        `submit`, and `ObjectNotFound` when the original is gone."""
        job_id = new_job_id()
        with bound_contextvars(job_id=job_id, customer_id=job.customer_id):
            new_job = ProfilePhotoJob(
                job_id=job_id,
                customer_id=job.customer_id,
                parameters=_with_origin(job.parameters),
                original=await self._pool.run(self._copy, job.original, job.customer_id, job_id),
                created_at=self._now(),
                priority=job.priority,
                callback_url=job.callback_url,
                retry_of=job.job_id,
            )
            return await self._commit(NewJob(job=new_job, idempotency_key=key))

    async def _commit(self, new: NewJob) -> ProfilePhotoJob:
        traces.note({"job_id": new.job.job_id, "customer_id": new.job.customer_id})
        try:
            with traces.span("submit"):
                return await self._trackers.submit(new)
        except BaseException as error:
            if isinstance(error, Unavailable):
                # It may have been committed by a tracker that did not live to retract it.
                self._trackers.retract(new.job.customer_id, new.job.job_id)
            await self._pool.run(self._delete, new.job.original.key)
            raise

    async def _store(self, customer_id: str, job_id: str, photo: BinaryIO, filename: str) -> StoredImage:
        """Inspect, clean and store the photo: one visit to a thread unless it must be decoded."""

        def inspect() -> StoredImage | UndecodedPhoto:
            inspected = inspect_photo(photo, filename, self._limits)
            if isinstance(inspected, UndecodedPhoto):
                return inspected
            return self._put_original(customer_id, job_id, inspected)

        original = await self._pool.run(inspect)
        if isinstance(original, StoredImage):
            return original
        clean = original.clean
        async with self._pixel_budget.reserve(original.pixels):
            return await self._pool.run(lambda: self._put_original(customer_id, job_id, clean()))

    def _put_original(self, customer_id: str, job_id: str, cleaned: CleanPhoto) -> StoredImage:
        key = original_key(customer_id, job_id, cleaned.media_type)
        self._put(key, cleaned.content, cleaned.media_type)
        return StoredImage(
            key=key,
            media_type=cleaned.media_type,
            size=cleaned.size,
            sha256=cleaned.sha256,
            width=cleaned.width,
            height=cleaned.height,
        )

    def _copy(self, original: StoredImage, customer_id: str, job_id: str) -> StoredImage:
        """Copy the original, so that the copy stays when the first one is erased."""
        key = original_key(customer_id, job_id, original.media_type)
        self._put(key, BytesIO(self._storage.get(original.key)), original.media_type)
        return replace(original, key=key)

    def _put(self, key: str, content: BinaryIO, media_type: str) -> None:
        try:
            self._storage.put(key, content, media_type)
        except Unavailable:
            # It may have been stored, with the answer lost.
            self._delete(key)
            raise

    def _delete(self, key: str) -> None:
        try:
            self._storage.delete(key)
        except Unavailable as error:
            log.warning("orphaned object was left", key=key, code=error.code, reason=error.reason)


@asynccontextmanager
async def hold_key(
    trackers: TrackerClient, customer_id: str, name: IdempotencyKey, *, makes_job: bool = True
) -> AsyncIterator[KnownKey | None]:
    """Hold the key while what it names is done; yields what it stands for if it is known. If `makes_job`, a
    key whose job has ended and lost its original counts as unknown.

    Raises `IdempotencyKeyReused` and `IdempotencyKeyInFlight`.
    """
    fingerprint = name.fingerprint if makes_job else None
    known = await trackers.execute(JobTrackerActor.acquire_key, customer_id, name.key, fingerprint)
    if known is not None:
        if known.fingerprint != name.fingerprint:
            raise IdempotencyKeyReused(name.key, known.job_id)
        yield known
        return
    try:
        yield None
    finally:
        try:
            await trackers.execute(JobTrackerActor.release_key, customer_id, name.key)
        except Unavailable as error:
            log.info("idempotency key stays held for a while", reason=error.reason)


def name_command(key: str, *command: str) -> IdempotencyKey:
    """Return the key as the name of a command, given with all that it depends on."""
    return IdempotencyKey(key=key, fingerprint=hashlib.sha256(json.dumps(command).encode()).hexdigest())


def _find_crop(photo: CleanPhoto, *, preview: bool) -> FoundCrop:
    image = load_upright(photo.content.read())
    found = find_square(image)
    encoded = BytesIO()
    if preview:
        side = min(_PREVIEW_SIDE, *image.size)
        extract(image, found, (side, side)).save(encoded, "JPEG", quality=85)
    # Huge photos are decoded at half their sides.
    scale = photo.width / image.width
    square = replace(found, left=found.left * scale, top=found.top * scale, side=found.side * scale)
    return FoundCrop(
        square=square, width=photo.width, height=photo.height, preview=encoded.getvalue() if preview else None
    )


def _with_origin(parameters: GenerationParameters) -> GenerationParameters:
    """Return the parameters with the trace and the request that this upload belongs to, or with none."""
    return replace(parameters, traceparent=traces.traceparent(), request_id=get_request_id())


def compute_fingerprint(photo: BinaryIO, fields: Mapping[str, str]) -> str:
    """Return a digest of an upload as it was sent: photo and fields. Blocks."""
    photo.seek(0)
    digest = hashlib.sha256()
    while chunk := photo.read(1 << 18):
        digest.update(chunk)
    digest.update(json.dumps(sorted(fields.items())).encode())
    return digest.hexdigest()
