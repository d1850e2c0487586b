"""The intake: how submissions become jobs on the board, each of them once."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from avatarforge.domain.changes import NewJob
from avatarforge.domain.errors import AvatarForgeError, IdempotencyKeyInFlight, TrackerUnavailable
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.keys import job_prefix
from avatarforge.tracker.backlog import Backlog
from avatarforge.tracker.board import Board
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.keys import KeysInFlight
from avatarforge.tracker.readiness import Readiness
from avatarforge.tracker.records import TrackerRecords

log = structlog.get_logger(__name__)


class Intake:
    """Accepts new jobs, and knows what stands under an idempotency key."""

    MOST_REFUSED = 10_000
    """Ids of disowned jobs that are remembered, the newest: their submissions are late by some seconds."""

    def __init__(
        self,
        records: TrackerRecords,
        board: Board,
        backlog: Backlog,
        readiness: Readiness,
        storage: ObjectStorage,
        *,
        on_accepted: Callable[[ProfilePhotoJob], None],
        now: Callable[[], datetime],
    ) -> None:
        """`on_accepted` hears of every job that was committed."""
        self._records = records
        self._board = board
        self._backlog = backlog
        self._readiness = readiness
        self._storage = storage
        self._on_accepted = on_accepted
        self._now = now
        self._keys = KeysInFlight(steady)
        self._accepting: dict[str, asyncio.Task[ProfilePhotoJob]] = {}
        self._refused: dict[str, None] = {}
        """Ids of jobs that are accepted no more, nor told as kept, oldest first."""

    @property
    def under_way(self) -> tuple[asyncio.Task[ProfilePhotoJob], ...]:
        """Submissions that wait for their commit."""
        return tuple(self._accepting.values())

    async def submit(self, jobs: Sequence[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        """Accept new jobs. Each is committed when its entry of the answer is a job; else it was not kept, as
        the `Unavailable` or `BacklogFull` error there says.

        Submitting a job again (its first answer was lost) returns it as it stands.
        """
        try:
            await self._readiness.in_time()
        except AvatarForgeError as error:
            return [error] * len(jobs)
        answers = await asyncio.gather(*(self._accept(new) for new in jobs), return_exceptions=True)
        return [_told(answer) for answer in answers]

    def refuse(self, job_id: str) -> None:
        """Accept the job no more: its client has been told that it is not kept, or is about to be; and its
        submission, which was held up on its way, may yet come, or come again."""
        self._refused[job_id] = None
        while len(self._refused) > self.MOST_REFUSED:
            del self._refused[next(iter(self._refused))]

    async def settled(self, job_id: str) -> None:
        """Return when no submission of the job is under way."""
        if (accepting := self._accepting.get(job_id)) is not None:
            await asyncio.wait({accepting})

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """The job as it stands, unfinished or not: how a lost answer to `submit` is read back. `None` is told
        of a job that is not on record, or that will be erased since it was refused."""
        await self._readiness.reached()
        await self.settled(job_id)
        if job_id in self._refused:
            return None
        return self._board.get(job_id) or await asyncio.to_thread(self._records.job, customer_id, job_id)

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | None:
        """What is on record under the idempotency key; if nothing is, it is the caller's until it is freed.

        Raises `IdempotencyKeyInFlight` while it is another caller's, or its job is about to be erased; and
        `StorageUnavailable` where nobody can tell.
        """
        await self._readiness.in_time()
        self._keys.hold(customer_id, key)
        try:
            known = await asyncio.to_thread(self._records.known_key, customer_id, key, self._now())
            if known is not None and not await self._stands(customer_id, known.job_id):
                raise IdempotencyKeyInFlight(key)
        except BaseException:
            self._keys.free(customer_id, key)
            raise
        if known is not None:
            self._keys.free(customer_id, key)
        return known

    def free_key(self, customer_id: str, key: str) -> None:
        """The caller's upload has come to its end."""
        self._keys.free(customer_id, key)

    async def _stands(self, customer_id: str, job_id: str) -> bool:
        """Whether the job on record is a promise, and not about to be erased since its caller was told 503.

        One that this tracker committed after that is unfinished and not on the board. One whose answer was
        lost, with an earlier tracker or on its way, is on the board, and its original is gone: that went
        before the caller was told.
        """
        job = self._board.get(job_id)
        if job is None:
            job = await asyncio.to_thread(self._records.job, customer_id, job_id)
            return job is not None and job.status.is_terminal
        return await asyncio.to_thread(self._has_original, job)

    def _has_original(self, job: ProfilePhotoJob) -> bool:
        stored = self._storage.list(job_prefix(job.customer_id, job.job_id))
        return any(found.key == job.original.key for found in stored)

    async def _accept(self, new: NewJob) -> ProfilePhotoJob:
        job_id = new.job.job_id
        known = self._board.get(job_id)
        if known is not None:
            return known
        accepting = self._accepting.get(job_id)
        if accepting is None:
            if job_id in self._refused:
                raise TrackerUnavailable("the submission came too late: its client was told so")
            self._backlog.enter(new.job)
            accepting = asyncio.create_task(self._accept_new(new), name="accept")
            self._accepting[job_id] = accepting
            accepting.add_done_callback(lambda _: self._accepting.pop(job_id))
        return await asyncio.shield(accepting)

    async def _accept_new(self, new: NewJob) -> ProfilePhotoJob:
        try:
            job = await self._board.accept(new)
        except AvatarForgeError:
            self._backlog.leave(new.job.job_id)
            # It may be committed yet, and is erased then. Submitted again, the two would be one to the log.
            self.refuse(new.job.job_id)
            raise
        except Exception:
            self._backlog.leave(new.job.job_id)
            # Kept twice at the same time, through a tracker that started in between: the first one counts.
            if new.idempotency_key is not None and await self._is_known(new):
                raise IdempotencyKeyInFlight(new.idempotency_key.key) from None
            raise
        self._on_accepted(job)
        return job

    async def _is_known(self, new: NewJob) -> bool:
        assert new.idempotency_key is not None, "asked only of jobs with a key"
        known = await asyncio.to_thread(
            self._records.known_key, new.job.customer_id, new.idempotency_key.key, self._now()
        )
        return known is not None


def _told(answer: ProfilePhotoJob | BaseException) -> ProfilePhotoJob | AvatarForgeError:
    """What the caller hears: anything but a kept job is an error of our family."""
    if isinstance(answer, ProfilePhotoJob | AvatarForgeError):
        return answer
    log.error("submission broke", exc_info=answer)
    return TrackerUnavailable(f"a submission broke ({type(answer).__name__})")
