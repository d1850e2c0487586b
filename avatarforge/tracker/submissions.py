"""Submissions: how new jobs come into the job table, each of them once."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from avatarforge.background import Clock, monotonic
from avatarforge.domain.changes import KnownKey, NewJob
from avatarforge.domain.errors import AvatarForgeError, IdempotencyKeyInFlight, TrackerUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence import JobRepository
from avatarforge.persistence.database import limit_wait
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import job_prefix
from avatarforge.tracker.availability import StartupGate
from avatarforge.tracker.jobs.committer import Committer
from avatarforge.tracker.jobs.job_table import JobTable
from avatarforge.tracker.queue.admission import AdmissionControl

log = structlog.get_logger(__name__)


class SubmissionHandler:
    """Accepts new jobs, and knows which job stands under an idempotency key."""

    MAX_REJECTED = 10_000
    """Ids of rejected jobs that are remembered, the newest: their submissions are late by some seconds."""

    def __init__(
        self,
        store: JobRepository,
        committer: Committer,
        job_table: JobTable,
        admission: AdmissionControl,
        gate: StartupGate,
        storage: ObjectStorage,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._committer = committer
        self._job_table = job_table
        self._admission = admission
        self._gate = gate
        self._storage = storage
        self._now = now
        self._keys = KeysInFlight(monotonic)
        self._accepting: dict[str, asyncio.Task[ProfilePhotoJob]] = {}
        self._rejected: dict[str, None] = {}
        """Ids of jobs that are accepted no more, nor told as kept, oldest first."""

    async def stop(self) -> None:
        """Cancel the submissions that still wait for their commit."""
        accepting = tuple(self._accepting.values())
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)

    async def submit(self, jobs: Sequence[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        """Accept new jobs. Each is committed when its entry of the answer is a job; else it was not kept, as
        the `Unavailable` or `BacklogFull` error there says.

        Submitting a job again (its first answer was lost) returns it as it stands.
        """
        try:
            await self._gate.wait_in_time()
        except AvatarForgeError as error:
            return [error] * len(jobs)
        answers = await asyncio.gather(*(self._accept(new) for new in jobs), return_exceptions=True)
        return [_convert_answer(answer) for answer in answers]

    def reject(self, job_id: str) -> None:
        """Accept the job no more: its client has been told that it is not kept, or is about to be; and its
        submission, which was held up on its way, may yet come, or come again."""
        self._rejected[job_id] = None
        while len(self._rejected) > self.MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]

    async def wait_until_settled(self, job_id: str) -> None:
        """Return when no submission of the job is under way."""
        if (accepting := self._accepting.get(job_id)) is not None:
            await asyncio.wait({accepting})

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """Return the job as it stands, unfinished or not: so a lost answer to `submit` is read back.

        `None` for a job that is not on record, or that will be erased since it was rejected.
        """
        await self._gate.wait()
        await self.wait_until_settled(job_id)
        if job_id in self._rejected:
            return None
        return self._job_table.get(job_id) or await asyncio.to_thread(
            self._store.find_job, customer_id, job_id
        )

    async def acquire_key(self, customer_id: str, key: str, fingerprint: str | None) -> KnownKey | None:
        """Return the job on record under the idempotency key; if there is none, the caller has the key until
        it releases it. For the same upload, of this fingerprint, the key stands no more for a job that has
        ended and whose original is gone; `None` is a command that makes no job.

        Raises `IdempotencyKeyInFlight` while another caller has it, or its job is about to be erased; and
        `StorageUnavailable` if that cannot be found out.
        """
        await self._gate.wait_in_time()
        self._keys.acquire(customer_id, key)
        try:
            known = await self._find_key(customer_id, key)
            if known is not None:
                known = await self._keep_known(customer_id, key, known, fingerprint)
        except BaseException:
            self._keys.release(customer_id, key)
            raise
        if known is not None:
            self._keys.release(customer_id, key)
        return known

    def release_key(self, customer_id: str, key: str) -> None:
        """Give the key back: the caller's upload has come to its end."""
        self._keys.release(customer_id, key)

    async def _keep_known(
        self, customer_id: str, key: str, known: KnownKey, fingerprint: str | None
    ) -> KnownKey | None:
        """Return what is known if its job is a promise; raise `IdempotencyKeyInFlight` if it is about to be
        erased, since its caller got a 503.

        One that this tracker committed after that is unfinished and not in the job table. Of one whose answer
        was lost, with an earlier tracker or on its way, the original is gone: that was removed before the
        caller was answered. If such a job has ended meanwhile, or its original went with a restored backup,
        the key is free again for the same upload: whoever was to have it erased may have died.
        """
        job = in_table = self._job_table.get(known.job_id)
        if job is None:
            job = await limit_wait(asyncio.to_thread(self._store.find_job, customer_id, known.job_id))
        if known.job_id in self._rejected or job is None or not (in_table or job.status.is_terminal):
            raise IdempotencyKeyInFlight(key)
        if job.status.is_terminal and known.fingerprint != fingerprint:
            return known
        if await asyncio.to_thread(self._has_original, job):
            return known
        if not job.status.is_terminal:
            raise IdempotencyKeyInFlight(key)
        await self._committer.run_fenced(self._store.forget_key, customer_id, key, known.job_id)
        return None

    def _has_original(self, job: ProfilePhotoJob) -> bool:
        stored = self._storage.list(job_prefix(job.customer_id, job.job_id))
        return any(found.key == job.original.key for found in stored)

    async def _accept(self, new: NewJob) -> ProfilePhotoJob:
        job_id = new.job.job_id
        known = self._job_table.get(job_id)
        if known is not None:
            return known
        accepting = self._accepting.get(job_id)
        if accepting is None:
            if job_id in self._rejected:
                raise TrackerUnavailable("the submission came too late: its client was told so")
            self._admission.admit(new.job)
            accepting = asyncio.create_task(self._accept_new(new), name="accept")
            self._accepting[job_id] = accepting
            accepting.add_done_callback(lambda _: self._accepting.pop(job_id))
        return await asyncio.shield(accepting)

    async def _accept_new(self, new: NewJob) -> ProfilePhotoJob:
        try:
            return await self._job_table.insert(new)
        except AvatarForgeError:
            self._admission.release(new.job.job_id)
            # It may be committed yet, and is erased then. Submitted again, the two would be one to the log.
            self.reject(new.job.job_id)
            raise
        except Exception:
            self._admission.release(new.job.job_id)
            # Kept twice at the same time, through a tracker that started in between: the first one counts.
            key = new.idempotency_key
            if key is not None and await self._find_key(new.job.customer_id, key.key) is not None:
                raise IdempotencyKeyInFlight(key.key) from None
            raise

    async def _find_key(self, customer_id: str, key: str) -> KnownKey | None:
        return await limit_wait(asyncio.to_thread(self._store.find_key, customer_id, key, self._now()))


def _convert_answer(answer: ProfilePhotoJob | BaseException) -> ProfilePhotoJob | AvatarForgeError:
    """Return a kept job as it is, and anything else as an error of our family."""
    if isinstance(answer, ProfilePhotoJob | AvatarForgeError):
        return answer
    log.error("submission broke", exc_info=answer)
    return TrackerUnavailable(f"a submission broke ({type(answer).__name__})")


class KeysInFlight:
    """Idempotency keys in use. Kept in memory: the database refuses a key's second job anyway."""

    MAX_SECONDS = 5.0
    """Seconds after which a key is free again whose holder never released it: an ingress replica that died
    with the upload, whose client asks again with the key. An upload that takes longer loses nothing by it:
    the database refuses the second job of a key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._expiry: dict[tuple[str, str], float] = {}
        """The keys in use, oldest first."""

    def acquire(self, customer_id: str, key: str) -> None:
        """Take the key. Raises `IdempotencyKeyInFlight` when somebody else has it."""
        self._release_expired()
        if (customer_id, key) in self._expiry:
            raise IdempotencyKeyInFlight(key)
        self._expiry[customer_id, key] = self._clock() + self.MAX_SECONDS

    def release(self, customer_id: str, key: str) -> None:
        self._expiry.pop((customer_id, key), None)

    def _release_expired(self) -> None:
        now = self._clock()
        while self._expiry:
            oldest = next(iter(self._expiry))
            if self._expiry[oldest] > now:
                return
            del self._expiry[oldest]
