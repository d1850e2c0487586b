"""How a photo becomes a job that is kept: object first, then the commit, and neither without the other."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, BinaryIO, Protocol, TypeVar

import structlog

from avatarforge.domain.errors import Unavailable
from avatarforge.domain.identifiers import new_job_id
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.ingress.photos import examine
from avatarforge.ingress.submissions import Submission
from avatarforge.settings import UploadSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import original_key

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Trackers(Protocol):
    """Where jobs are submitted; `tracker.client.JobTrackers` keeps it."""

    async def submit(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        """The job, committed. Raises `Unavailable` errors; then it was not kept and will not be."""


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
        self._threads = ThreadPoolExecutor(self.THREADS, thread_name_prefix="upload")
        self._under_way: set[asyncio.Task[ProfilePhotoJob]] = set()

    async def close(self) -> None:
        """Let what is under way come to its end."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    async def accept(
        self, customer_id: str, submission: Submission, photo: BinaryIO, filename: str
    ) -> ProfilePhotoJob:
        """The job as committed, its original in storage; on any error neither of them stays.

        Raises the errors of `examine` and `Unavailable` errors. A caller that is cancelled is held until
        the work has ended: a thread cannot be stopped, it reads `photo`, and a job that was committed
        needs its object.
        """
        task = asyncio.create_task(self._accepted(customer_id, submission, photo, filename), name="accept")
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
        self, customer_id: str, submission: Submission, photo: BinaryIO, filename: str
    ) -> ProfilePhotoJob:
        job_id = new_job_id()
        original = await self._in_thread(self._keep, customer_id, job_id, photo, filename)
        job = ProfilePhotoJob(
            job_id=job_id,
            customer_id=customer_id,
            parameters=submission.parameters,
            original=original,
            created_at=self._now(),
            priority=submission.priority,
            callback_url=submission.callback_url,
        )
        try:
            return await self._trackers.submit(job)
        except BaseException:
            await self._in_thread(self._delete, original.key)
            raise

    def _keep(self, customer_id: str, job_id: str, photo: BinaryIO, filename: str) -> StoredImage:
        """Examine, clean and store the photo: one visit to a thread for all of it."""
        cleaned = examine(photo, filename, self._limits).cleaned()
        key = original_key(customer_id, job_id, cleaned.media_type)
        try:
            self._storage.put(key, cleaned.content, cleaned.media_type)
        except Unavailable:
            # It may have been stored, with the answer lost.
            self._delete(key)
            raise
        return StoredImage(
            key=key,
            media_type=cleaned.media_type,
            size=cleaned.size,
            sha256=cleaned.sha256,
            width=cleaned.width,
            height=cleaned.height,
        )

    def _delete(self, key: str) -> None:
        try:
            self._storage.delete(key)
        except Unavailable as error:
            log.warning("orphaned object was left", key=key, code=error.code, reason=error.reason)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
