"""Streams of job events, which SSE and gRPC carry. A client that was away resumes from its last `seq`."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from avatarforge.domain.changes import LogBounds, LoggedChange
from avatarforge.domain.customers import shard_of, validate_customer_id
from avatarforge.domain.errors import InvalidRequest, JobNotFound
from avatarforge.domain.status import EventKind
from avatarforge.ingress.limits import StreamLimit
from avatarforge.ingress.live.events import Changed, Erased, Overflowed, Progressed
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.messages import LiveJob
from avatarforge.persistence.jobs import JobRepository
from avatarforge.settings import IngressSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """The beginning of a stream: the customer's unfinished jobs, or the one job that was asked for."""

    seq: int
    """What comes next has a higher number."""
    jobs: tuple[LiveJob, ...]
    reset: bool = False
    """Some of what the client missed is no longer in the log: this stands for it."""


StreamEvent = Snapshot | Changed | Erased | Progressed | Overflowed


class EventLog:
    """The record of jobs and their events, read in threads."""

    def __init__(
        self,
        records: JobRepository,
        shards: int,
        find_job: Callable[[str, str], Awaitable[LiveJob]],
        run_in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        """`find_job` raises `JobNotFound`."""
        self._records = records
        self._shards = shards
        self.job = find_job
        self._run_in_thread = run_in_thread

    async def bounds(self, customer_id: str) -> LogBounds:
        """Return the bounds of the log of the customer's shard."""
        shard = shard_of(customer_id, self._shards)
        bounds: LogBounds = await self._run_in_thread(self._records.get_log_bounds, shard)
        return bounds

    async def page(self, customer_id: str, job_id: str | None, after: int, limit: int) -> list[LoggedChange]:
        """Return the customer's first `limit` changes after `after`, of one job or of all."""
        page: list[LoggedChange] = await self._run_in_thread(
            self._records.list_customer_events, customer_id, job_id, after, limit
        )
        return page


class JobStreams:
    """Follows customers' jobs for clients, each within its own bounded queue."""

    PAGE_SIZE = 500
    """Changes read from the database at once."""

    def __init__(
        self,
        live: JobCache,
        events: EventLog,
        settings: IngressSettings,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._live = live
        self._events = events
        self._settings = settings
        self._limit = StreamLimit(settings.max_streams, settings.max_streams_per_customer)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())

    async def follow(
        self, customer_id: str, job_id: str | None, after: int | None, *, heartbeat_seconds: float
    ) -> AsyncGenerator[StreamEvent | None, None]:
        """Stream the events of the customer's jobs, or of one of them, from now on or from `after` on.

        `None` says that nothing has happened for `heartbeat_seconds`, or since `after`. The stream ends after
        the terminal event or the erasure of the one job that was asked for, and what the log has of it beyond
        `after`; after an overflow, and after `max_stream_seconds`.
        Raises at its first item `InvalidCustomerId`, `JobNotFound`, `InvalidRequest` for an `after` that no
        event has reached, `TooManyStreams` and `Unavailable`.
        """
        validate_customer_id(customer_id)
        with self._limit.slot(customer_id):
            async with aclosing(self._follow(customer_id, job_id, after, heartbeat_seconds)) as items:
                async for item in items:
                    yield item

    async def _follow(
        self, customer_id: str, job_id: str | None, after: int | None, heartbeat_seconds: float
    ) -> AsyncGenerator[StreamEvent | None, None]:
        await self._live.wait_until_ready(customer_id)
        # Less by chance, so that the clients of a replica do not all come back in one moment.
        end = self._clock() + self._settings.max_stream_seconds * random.uniform(0.9, 1)
        # Listening begins before the past is read, so that nothing falls between the two.
        with self._live.subscribe(customer_id, job_id, self._settings.stream_buffer) as subscription:
            seen, is_over = 0 if after is None else after, False
            async for item in self._catch_up(customer_id, job_id, after):
                seen = max(seen, item.seq)
                yield item
                # The log may go on: what is kept can be chosen after the end.
                is_over = job_id is not None and _is_last(item)
            if is_over:
                return
            if after is not None:
                if job_id is not None and await self._is_over(customer_id, job_id, seen, after):
                    return
                if seen == after:
                    # The client hears at once that it is connected.
                    yield None
            while (left := end - self._clock()) > 0:
                event = await subscription.next(min(heartbeat_seconds, left), seen)
                if isinstance(event, Changed | Erased):
                    if event.seq <= seen:
                        continue
                    seen = event.seq
                yield event
                if isinstance(event, Overflowed) or (job_id is not None and _is_last(event)):
                    return

    async def _catch_up(
        self, customer_id: str, job_id: str | None, after: int | None
    ) -> AsyncGenerator[Snapshot | Changed | Erased, None]:
        if after is None:
            yield await self._snapshot(customer_id, job_id)
            return
        missed = self._live.recent_changes(customer_id, after)
        if missed is not None:
            for item in _to_events(missed, job_id):
                yield item
            return
        bounds = await self._events.bounds(customer_id)
        if after > bounds.latest_seq:
            raise InvalidRequest(
                "after", after, f"the number of an event, which go up to {bounds.latest_seq}"
            )
        if after < bounds.pruned_seq:
            yield await self._snapshot(customer_id, job_id, reset=True)
            return
        while True:
            page = await self._events.page(customer_id, job_id, after, self.PAGE_SIZE)
            # A client may read so slowly that pruning has come past it since the last page.
            if (await self._events.bounds(customer_id)).pruned_seq > after:
                yield await self._snapshot(customer_id, job_id, reset=True)
                return
            for item in _to_events(page, job_id):
                yield item
            if len(page) < self.PAGE_SIZE:
                return
            after = page[-1].event.seq

    async def _snapshot(self, customer_id: str, job_id: str | None, *, reset: bool = False) -> Snapshot:
        # The number first: what changes while the job is read is told after it.
        seq = self._live.seq(customer_id)
        if job_id is None:
            return Snapshot(seq=seq, jobs=self._live.list_unfinished(customer_id), reset=reset)
        return Snapshot(seq=seq, jobs=(await self._events.job(customer_id, job_id),), reset=reset)

    async def _is_over(self, customer_id: str, job_id: str, seen: int, after: int) -> bool:
        """Tell whether a client that was sent all up to `seen` was sent the job's end."""
        try:
            job = (await self._events.job(customer_id, job_id)).job
        except JobNotFound:
            if seen == after:
                raise
            # Erased in this moment: that comes next.
            return False
        # An end beyond `seen` is still to be told: the record may be ahead of the view.
        return job.status.is_terminal and job.seq <= seen


def _to_events(changes: Sequence[LoggedChange], job_id: str | None) -> Iterator[Changed | Erased]:
    """Yield the changes as stream events; of a job that was erased since only the erasure."""
    for change in changes:
        event = change.event
        if job_id not in (None, event.job_id):
            continue
        if event.kind is EventKind.ERASED:
            yield Erased(seq=event.seq, customer_id=event.customer_id, job_id=event.job_id)
        elif change.job is not None:
            yield Changed(seq=event.seq, live=LiveJob(job=change.job))


def _is_last(item: StreamEvent | None) -> bool:
    """Tell whether the stream's one job has ended or is erased."""
    match item:
        case Snapshot(jobs=jobs):
            return all(live.job.status.is_terminal for live in jobs)
        case Changed(live=live):
            return live.job.status.is_terminal
        case Erased():
            return True
    return False
