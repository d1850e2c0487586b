"""The events of a stream, and the bounded queue of each subscriber."""

import asyncio
from collections import deque
from dataclasses import dataclass

from avatarforge.background import wait_for_event
from avatarforge.domain.status import ProcessingStatus
from avatarforge.messages import LiveJob


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
    """A small image (WebP)."""
    index: int = 0
    """Which of the job's images the preview shows."""

    @property
    def job_id(self) -> str:
        return self.live.job.job_id


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overflowed:
    """The client was too slow for what happened: it has everything up to `seq`, and resumes from there."""

    seq: int


class Subscription:
    """The events that one client has not been sent yet: of all jobs of a customer, or of one.

    Of a job's steps only the newest is kept. More than `max_changes` changes overflow it: they are dropped,
    and it says so from then on.
    """

    def __init__(self, customer_id: str, job_id: str | None, max_changes: int) -> None:
        self.customer_id = customer_id
        self._job_id = job_id
        self._max_changes = max_changes
        self._changes: deque[Changed | Erased] = deque()
        self._steps: dict[str, Progressed] = {}
        self._overflowed = False
        self._has_events = asyncio.Event()

    def put(self, event: Changed | Erased | Progressed) -> None:
        if self._job_id not in (None, event.job_id) or self._overflowed:
            return
        if isinstance(event, Progressed):
            self._steps[event.job_id] = event
        else:
            if isinstance(event, Erased) or event.live.job.status is not ProcessingStatus.PROCESSING:
                self._steps.pop(event.job_id, None)
            self._changes.append(event)
            if len(self._changes) > self._max_changes:
                self.overflow()
        self._has_events.set()

    def overflow(self) -> None:
        """Drop all events: from now on there is a gap."""
        self._changes.clear()
        self._steps.clear()
        self._overflowed = True
        self._has_events.set()

    async def next(self, seconds: float, seen: int) -> Changed | Erased | Progressed | Overflowed | None:
        """Return the next event; `None` if there is none for so long. `seen` is the last number sent."""
        if not (self._changes or self._steps or self._overflowed):
            self._has_events.clear()
            await wait_for_event(self._has_events, seconds)
        if self._overflowed:
            return Overflowed(seq=seen)
        if self._changes:
            return self._changes.popleft()
        if self._steps:
            return self._steps.pop(next(iter(self._steps)))
        return None
