"""What a stream tells, and the bounded queue of each client that listens."""

import asyncio
from collections import deque
from dataclasses import dataclass

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveJob:
    """A job with what only lives in memory."""

    job: ProfilePhotoJob
    progress: GenerationProgress | None = None
    queue_position: int | None = None
    """1 is next; `None` when it does not wait or stands beyond the told part of the line."""
    eta_seconds: float | None = None
    """Seconds until it is done, as far as can be told; `None` while nothing was measured."""


# Compared by identity, so that what is made of one of them, its bytes on the wire, can be kept for all.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Changed:
    """A change of a job, as it was committed under `seq`."""

    seq: int
    live: LiveJob

    @property
    def job_id(self) -> str:
        return self.live.job.job_id


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Erased:
    """A job was erased: nothing but its ids is left."""

    seq: int
    customer_id: str
    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progressed:
    """A step of a running job. Live only: it has no number and is never told again."""

    live: LiveJob
    preview: bytes | None
    """A small picture (WebP)."""

    @property
    def job_id(self) -> str:
        return self.live.job.job_id


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overflowed:
    """The client was too slow for what happened: it has everything up to `seq`, and resumes from there."""

    seq: int


class Subscription:
    """What one client still has to be told: of all jobs of a customer, or of one.

    Of a job's steps only the newest waits. More than `most` changes overflow it: they are dropped, and it
    says so from then on.
    """

    def __init__(self, customer_id: str, job_id: str | None, most: int) -> None:
        self.customer_id = customer_id
        self._job_id = job_id
        self._most = most
        self._changes: deque[Changed | Erased] = deque()
        self._steps: dict[str, Progressed] = {}
        self._overflowed = False
        self._awaited: asyncio.Future[None] | None = None

    def tell(self, news: Changed | Erased | Progressed) -> None:
        if self._job_id not in (None, news.job_id) or self._overflowed:
            return
        if isinstance(news, Progressed):
            self._steps[news.job_id] = news
        else:
            if isinstance(news, Erased) or news.live.job.status is not ProcessingStatus.PROCESSING:
                self._steps.pop(news.job_id, None)
            self._changes.append(news)
            if len(self._changes) > self._most:
                self.overflow()
        self._wake()

    def overflow(self) -> None:
        """From now on there is a gap."""
        self._changes.clear()
        self._steps.clear()
        self._overflowed = True
        self._wake()

    async def next(self, seconds: float, seen: int) -> Changed | Erased | Progressed | Overflowed | None:
        """The next news; `None` when there was none for so long. `seen` is the last number that was told."""
        if not (self._changes or self._steps or self._overflowed):
            self._awaited = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._awaited,), timeout=seconds)
            self._awaited = None
        if self._overflowed:
            return Overflowed(seq=seen)
        if self._changes:
            return self._changes.popleft()
        if self._steps:
            return self._steps.pop(next(iter(self._steps)))
        return None

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)
