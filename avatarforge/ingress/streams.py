"""Streams of job updates: what SSE and gRPC carry. A client that was away resumes from its last `seq`."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Protocol

from avatarforge.domain.changes import LogBounds, LoggedChange
from avatarforge.domain.customers import checked_customer_id
from avatarforge.domain.errors import InvalidRequest, JobNotFound
from avatarforge.domain.events import EventKind
from avatarforge.ingress.news import Changed, Erased, LiveJob, Overflowed, Progressed, Subscription
from avatarforge.ingress.places import StreamPlaces
from avatarforge.settings import IngressSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """Where a stream begins: the customer's unfinished jobs, or the one job that was asked for."""

    seq: int
    """What comes next has a higher number."""
    jobs: tuple[LiveJob, ...]
    reset: bool = False
    """Some of what the client missed is no longer in the log: this stands for it."""


StreamItem = Snapshot | Changed | Erased | Progressed | Overflowed


class LiveNews(Protocol):
    """What streams need of the view; `view.LiveJobs` keeps it."""

    async def heard(self, customer_id: str) -> None: ...

    def seq(self, customer_id: str) -> int: ...

    def unfinished(self, customer_id: str) -> tuple[LiveJob, ...]: ...

    def recent(self, customer_id: str, after: int) -> Sequence[LoggedChange] | None: ...

    def subscribed(
        self, customer_id: str, job_id: str | None, most: int
    ) -> AbstractContextManager[Subscription]: ...


class LoggedEvents(Protocol):
    """What streams need of the record, in their event loop; `service.ProfilePhotos` gives it."""

    async def job(self, customer_id: str, job_id: str) -> LiveJob: ...

    async def bounds(self, customer_id: str) -> LogBounds: ...

    async def page(
        self, customer_id: str, job_id: str | None, after: int, limit: int
    ) -> list[LoggedChange]: ...


class JobStreams:
    """Follows customers' jobs for clients, each within its own bounded queue."""

    PAGE = 500
    """Changes read from the database at once."""

    def __init__(
        self,
        live: LiveNews,
        events: LoggedEvents,
        settings: IngressSettings,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._live = live
        self._events = events
        self._settings = settings
        self._places = StreamPlaces(settings.max_streams, settings.max_streams_per_customer)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())

    async def follow(
        self, customer_id: str, job_id: str | None, after: int | None, *, quiet_seconds: float
    ) -> AsyncGenerator[StreamItem | None, None]:
        """What happens to the customer's jobs, or to one of them, from now on or from `after` on.

        `None` says that nothing has happened for `quiet_seconds`, or since `after`. The stream ends after
        the terminal event or the erasure of the one job that was asked for, after an overflow, and after
        `max_stream_seconds`.
        Raises at its first item `InvalidCustomerId`, `JobNotFound`, `InvalidRequest` for an `after` that no
        event has reached, `TooManyStreams` and `Unavailable`.
        """
        checked_customer_id(customer_id)
        with self._places.one(customer_id):
            async with aclosing(self._followed(customer_id, job_id, after, quiet_seconds)) as items:
                async for item in items:
                    yield item

    async def _followed(
        self, customer_id: str, job_id: str | None, after: int | None, quiet_seconds: float
    ) -> AsyncGenerator[StreamItem | None, None]:
        await self._live.heard(customer_id)
        # Less by chance, so that the clients of a replica do not all come back in one moment.
        end = self._clock() + self._settings.max_stream_seconds * random.uniform(0.9, 1)
        most = self._settings.stream_buffer
        # Listening begins before the past is read, so that nothing falls between the two.
        with self._live.subscribed(customer_id, job_id, most) as subscription:
            seen = 0 if after is None else after
            async for item in self._beginning(customer_id, job_id, after):
                seen = max(seen, item.seq)
                yield item
                if job_id is not None and _is_last(item):
                    return
            if after is not None:
                if job_id is not None and await self._is_over(customer_id, job_id, seen, after):
                    return
                if seen == after:
                    # The client hears at once that it is connected.
                    yield None
            while (left := end - self._clock()) > 0:
                news = await subscription.next(min(quiet_seconds, left), seen)
                if isinstance(news, Changed | Erased):
                    if news.seq <= seen:
                        continue
                    seen = news.seq
                yield news
                if isinstance(news, Overflowed) or (job_id is not None and _is_last(news)):
                    return

    async def _beginning(
        self, customer_id: str, job_id: str | None, after: int | None
    ) -> AsyncGenerator[Snapshot | Changed | Erased, None]:
        if after is None:
            yield await self._snapshot(customer_id, job_id)
            return
        missed = self._live.recent(customer_id, after)
        if missed is not None:
            for item in _told(missed, job_id):
                yield item
            return
        bounds = await self._events.bounds(customer_id)
        if after > bounds.latest_seq:
            raise InvalidRequest(
                "after (Last-Event-ID)", after, f"the number of an event, which go up to {bounds.latest_seq}"
            )
        if after < bounds.pruned_seq:
            yield await self._snapshot(customer_id, job_id, reset=True)
            return
        while True:
            page = await self._events.page(customer_id, job_id, after, self.PAGE)
            # A client may read so slowly that pruning has come past it since the last page.
            if (await self._events.bounds(customer_id)).pruned_seq > after:
                yield await self._snapshot(customer_id, job_id, reset=True)
                return
            for item in _told(page, job_id):
                yield item
            if len(page) < self.PAGE:
                return
            after = page[-1].event.seq

    async def _snapshot(self, customer_id: str, job_id: str | None, *, reset: bool = False) -> Snapshot:
        # The number first: what changes while the job is read is told after it.
        seq = self._live.seq(customer_id)
        if job_id is None:
            return Snapshot(seq=seq, jobs=self._live.unfinished(customer_id), reset=reset)
        return Snapshot(seq=seq, jobs=(await self._events.job(customer_id, job_id),), reset=reset)

    async def _is_over(self, customer_id: str, job_id: str, seen: int, after: int) -> bool:
        """Whether a client that has heard of all up to `seen` has heard of the job's end."""
        try:
            job = (await self._events.job(customer_id, job_id)).job
        except JobNotFound:
            if seen == after:
                raise
            # Erased in this moment: that comes next.
            return False
        # An end beyond `seen` is still to be told: the record may be ahead of the view.
        return job.status.is_terminal and job.seq <= seen


def _told(changes: Sequence[LoggedChange], job_id: str | None) -> Iterator[Changed | Erased]:
    """The log's entries as a stream tells them; of a job that was erased since only the erasure."""
    for change in changes:
        event = change.event
        if job_id not in (None, event.job_id):
            continue
        if event.kind is EventKind.ERASED:
            yield Erased(seq=event.seq, customer_id=event.customer_id, job_id=event.job_id)
        elif change.job is not None:
            yield Changed(seq=event.seq, live=LiveJob(job=change.job))


def _is_last(item: StreamItem | None) -> bool:
    """Whether nothing follows for the one job that the stream is about."""
    match item:
        case Snapshot(jobs=jobs):
            return all(live.job.status.is_terminal for live in jobs)
        case Changed(live=live):
            return live.job.status.is_terminal
        case Erased():
            return True
    return False
