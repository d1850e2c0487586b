"""How a photo becomes a job that is kept: object first, then the commit, and neither without the other."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from typing import Any, BinaryIO, Protocol, TypeVar

import structlog

from avatarforge.domain.changes import NewJob
from avatarforge.domain.errors import IdempotencyKeyReused, Unavailable
from avatarforge.domain.idempotency import IdempotencyKey, KnownKey
from avatarforge.domain.identifiers import new_job_id
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob, StoredImage
from avatarforge.ingress.photos import examine, is_decoded, pixels_to_decode
from avatarforge.ingress.room import Room
from avatarforge.ingress.submissions import Submission
from avatarforge.settings import UploadSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import original_key
from avatarforge.telemetry import traces
from avatarforge.telemetry.logs import about

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Trackers(Protocol):
    """Where jobs are submitted; `tracker.client.JobTrackers` keeps it."""

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        """The job, committed. Raises `Unavailable` errors; then it was not kept and will not be."""

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | None:
        """What the key stands for; if nothing, it is ours until freed. Raises `IdempotencyKeyInFlight`."""

    async def free_key(self, customer_id: str, key: str) -> None: ...

    def disown(self, customer_id: str, job_id: str) -> None:
        """See to it that the job is not kept, whose client was told so, should it be on record all the
        same."""


class Acceptance:
    """Accepts photos, `THREADS` at a time. `close()` ends the threads."""

    THREADS = 8
    """Photos that are examined and stored at a time: each needs memory for its pixels. More wait."""

    def __init__(
        self,
        storage: ObjectStorage,
        trackers: Trackers,
        limits: UploadSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._storage = storage
        self._trackers = trackers
        self._limits = limits
        self._now = now
        self._room = Room(limits.max_decoding_pixels)
        self._threads = ThreadPoolExecutor(self.THREADS, thread_name_prefix="upload")
        self._under_way: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Let what is under way come to its end."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    async def accept(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        key: IdempotencyKey | None = None,
    ) -> ProfilePhotoJob:
        """The job as committed, its original in storage; on any error neither of them stays.

        Raises the errors of `examine`, `IdempotencyKeyInFlight` and `Unavailable` errors. A caller that is
        cancelled is held until the work has ended: a thread cannot be stopped, it reads `photo`, and a job
        that was committed needs its object.
        """
        return await self._to_its_end(self._accepted(customer_id, submission, photo, filename, key))

    async def accept_once(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        fields: Mapping[str, str],
        key: str,
    ) -> ProfilePhotoJob | KnownKey:
        """As `accept`, or what the key stands for already.

        Raises `IdempotencyKeyReused` when it stands for another upload.
        """
        return await self._to_its_end(
            self._accepted_once(customer_id, submission, photo, filename, fields, key)
        )

    async def accept_again(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        """A new job with the photo and the wishes of one that has ended. Raises as `accept`, and
        `ObjectNotFound` when the original is gone."""
        return await self._to_its_end(self._accepted_again(job))

    async def _to_its_end(self, work: Coroutine[None, None, T]) -> T:
        task = asyncio.create_task(work, name="accept")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("abandoned submission failed", reason=str(error))
            raise

    async def _accepted(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        key: IdempotencyKey | None,
    ) -> ProfilePhotoJob:
        job_id = new_job_id()
        with about(job_id=job_id, customer_id=customer_id):
            return await self._kept(customer_id, job_id, submission, photo, filename, key)

    async def _kept(
        self,
        customer_id: str,
        job_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        key: IdempotencyKey | None,
    ) -> ProfilePhotoJob:
        decoded = is_decoded(photo)
        pixels = await self._in_thread(pixels_to_decode, photo, self._limits) if decoded else 0
        async with self._room.taken(pixels):
            with traces.span("store original"):
                original = await self._in_thread(self._keep, customer_id, job_id, photo, filename)
        job = ProfilePhotoJob(
            job_id=job_id,
            customer_id=customer_id,
            parameters=_traced(submission.parameters),
            original=original,
            created_at=self._now(),
            priority=submission.priority,
            callback_url=submission.callback_url,
        )
        return await self._submitted(NewJob(job=job, idempotency_key=key))

    async def _accepted_once(
        self,
        customer_id: str,
        submission: Submission,
        photo: BinaryIO,
        filename: str,
        fields: Mapping[str, str],
        key: str,
    ) -> ProfilePhotoJob | KnownKey:
        fingerprint = await self._in_thread(fingerprint_of, photo, fields)
        known = await self._trackers.hold_key(customer_id, key)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise IdempotencyKeyReused(key, known.job_id)
            return known
        try:
            named = IdempotencyKey(key=key, fingerprint=fingerprint)
            return await self._accepted(customer_id, submission, photo, filename, named)
        finally:
            await self._free(customer_id, key)

    async def _accepted_again(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        job_id = new_job_id()
        with about(job_id=job_id, customer_id=job.customer_id):
            again = ProfilePhotoJob(
                job_id=job_id,
                customer_id=job.customer_id,
                parameters=_traced(job.parameters),
                original=await self._in_thread(self._copy, job.original, job.customer_id, job_id),
                created_at=self._now(),
                priority=job.priority,
                callback_url=job.callback_url,
                retry_of=job.job_id,
            )
            return await self._submitted(NewJob(job=again))

    async def _submitted(self, new: NewJob) -> ProfilePhotoJob:
        traces.note({"job_id": new.job.job_id, "customer_id": new.job.customer_id})
        try:
            with traces.span("submit"):
                return await self._trackers.submit(new)
        except BaseException as error:
            if isinstance(error, Unavailable):
                # It may have been committed by a tracker that did not live to take it back.
                self._trackers.disown(new.job.customer_id, new.job.job_id)
            await self._in_thread(self._delete, new.job.original.key)
            raise

    async def _free(self, customer_id: str, key: str) -> None:
        try:
            await self._trackers.free_key(customer_id, key)
        except Unavailable as error:
            log.info("idempotency key stays held for a while", reason=error.reason)

    def _keep(self, customer_id: str, job_id: str, photo: BinaryIO, filename: str) -> StoredImage:
        """Examine, clean and store the photo: one visit to a thread for all of it."""
        cleaned = examine(photo, filename, self._limits).cleaned()
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
        """An original of its own, which stays when the first one is erased."""
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

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _traced(parameters: GenerationParameters) -> GenerationParameters:
    """With the trace that this upload belongs to, or none."""
    traceparent = traces.traceparent()
    if traceparent == parameters.traceparent:
        return parameters
    return replace(parameters, traceparent=traceparent)


def fingerprint_of(photo: BinaryIO, fields: Mapping[str, str]) -> str:
    """A digest of an upload as it was sent: the same photo with the same fields has the same. Blocks."""
    photo.seek(0)
    digest = hashlib.sha256()
    while chunk := photo.read(1 << 18):
        digest.update(chunk)
    digest.update(json.dumps(sorted(fields.items())).encode())
    return digest.hexdigest()
