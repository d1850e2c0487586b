"""What a stream tells when things happen in the moments between its parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from avatarforge.domain.changes import JobChange, LogBounds, LoggedChange
from avatarforge.domain.errors import InvalidRequest, JobNotFound
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.ingress.live.events import Changed, Erased, Overflowed, Subscription
from avatarforge.ingress.live.streams import JobStreams, Snapshot, StreamEvent
from avatarforge.messages import LiveJob
from avatarforge.settings import IngressSettings
from tests.factories import NOON, a_job, an_outcome

Told = tuple[str, int]


def told(item: StreamEvent | None) -> Told:
    return (type(item).__name__, 0 if item is None else item.seq)  # type: ignore[union-attr]  # no steps here


class Log:
    """One job's changes, as the view and the record have them."""

    def __init__(self) -> None:
        pending = replace(a_job(), seq=1)
        started = replace(pending.start(NOON), seq=2)
        done = replace(started.complete(an_outcome(), NOON), seq=3)
        kinds = (EventKind.SUBMITTED, EventKind.STARTED, EventKind.DONE)
        self.jobs = [pending, started, done]
        self.changes = [
            JobChange(job=job, event=job.event(kind, NOON)).with_seq(job.seq).to_logged_change()
            for job, kind in zip(self.jobs, kinds, strict=True)
        ]
        self.job_id = pending.job_id

    def changed(self, seq: int) -> Changed:
        return Changed(seq=seq, live=LiveJob(job=self.jobs[seq - 1]))

    def erased(self, seq: int) -> Erased:
        return Erased(seq=seq, customer_id="ana", job_id=self.job_id)


class Twin:
    """View and record up to the numbers that the test says; `meanwhile` happens while the record is asked."""

    def __init__(self, log: Log, *, view: int, record: int) -> None:
        self.log, self.view, self.record = log, view, record
        self.kept_from = 0
        self.pruned = 0
        self.is_erased = False
        self.time = 0.0
        self.meanwhile: Callable[[], None] = lambda: None
        self.subscription = Subscription("ana", None, 10)
        self.pages: list[int] = []

    # the view

    async def wait_until_ready(self, customer_id: str) -> None: ...

    def seq(self, customer_id: str) -> int:
        return self.view

    def list_unfinished(self, customer_id: str) -> tuple[LiveJob, ...]:
        job = self.log.jobs[self.view - 1] if self.view else None
        return () if job is None or job.status.is_terminal else (LiveJob(job=job),)

    def recent_changes(self, customer_id: str, after: int) -> Sequence[LoggedChange] | None:
        return self.log.changes[after : self.view] if self.kept_from <= after <= self.view else None

    @contextmanager
    def subscribe(self, customer_id: str, job_id: str | None, most: int) -> Iterator[Subscription]:
        self.subscription = Subscription(customer_id, job_id, most)
        yield self.subscription

    # the record

    async def job(self, customer_id: str, job_id: str) -> LiveJob:
        if self.is_erased or job_id != self.log.job_id:
            raise JobNotFound(customer_id, job_id)
        job: ProfilePhotoJob = self.log.jobs[self.record - 1]
        self.meanwhile()
        return LiveJob(job=job)

    async def bounds(self, customer_id: str) -> LogBounds:
        self.meanwhile()
        return LogBounds(pruned_seq=self.pruned, latest_seq=self.record)

    async def page(self, customer_id: str, job_id: str | None, after: int, limit: int) -> list[LoggedChange]:
        self.pages.append(after)
        page = self.log.changes[after : self.record][:limit]
        self.meanwhile()
        return page

    # the stream

    async def follow(self, job_id: str | None, after: int | None, most: int) -> list[Told]:
        """The first items."""
        settings = IngressSettings(max_stream_seconds=100)
        streams = JobStreams(self, self, settings, clock=lambda: self.time)
        items: list[Told] = []
        async for item in streams.follow("ana", job_id, after, heartbeat_seconds=0.01):
            items.append(told(item))
            if len(items) == most:
                break
        return items


async def test_what_happens_while_the_record_is_read_is_told_once_and_after_it() -> None:
    log = Log()
    twin = Twin(log, view=1, record=2)
    twin.kept_from = 9

    def feed() -> None:
        for seq in (1, 2, 3):
            twin.subscription.put(log.changed(seq))

    twin.meanwhile = feed
    assert await twin.follow(None, 0, 3) == [("Changed", 1), ("Changed", 2), ("Changed", 3)]


async def test_the_record_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobStreams, "PAGE_SIZE", 1)
    twin = Twin(Log(), view=3, record=3)
    twin.kept_from = 9
    assert await twin.follow(twin.log.job_id, 0, 10) == [("Changed", 1), ("Changed", 2), ("Changed", 3)]
    assert twin.pages[:3] == [0, 1, 2]


async def test_an_end_that_the_view_has_not_heard_of_is_told_before_the_stream_ends() -> None:
    twin = Twin(Log(), view=2, record=3)
    twin.meanwhile = lambda: twin.subscription.put(twin.log.changed(3))
    assert await twin.follow(twin.log.job_id, 2, 10) == [("NoneType", 0), ("Changed", 3)]


async def test_a_stream_of_one_who_has_heard_of_the_end_is_over() -> None:
    assert await Twin(log := Log(), view=3, record=3).follow(log.job_id, 3, 10) == []


async def test_a_job_that_is_erased_while_the_client_comes_back_is_told_as_erased() -> None:
    twin = Twin(Log(), view=2, record=2)
    twin.is_erased = True
    heard = twin.subscribe

    @contextmanager
    def subscribed(customer_id: str, job_id: str | None, most: int) -> Iterator[Subscription]:
        with heard(customer_id, job_id, most) as subscription:
            subscription.put(twin.log.erased(4))
            yield subscription

    twin.subscribe = subscribed  # type: ignore[method-assign]  # the erasure comes right after
    items = await twin.follow(twin.log.job_id, 0, 10)
    assert items == [("Changed", 1), ("Changed", 2), ("Erased", 4)]


async def test_a_job_that_ends_while_the_snapshot_is_made_is_told_after_it() -> None:
    twin = Twin(Log(), view=2, record=2)
    twin.meanwhile = lambda: twin.subscription.put(twin.log.changed(3))
    assert await twin.follow(twin.log.job_id, None, 10) == [("Snapshot", 2), ("Changed", 3)]


async def test_a_number_beyond_the_view_is_no_error_while_the_record_has_it() -> None:
    assert (await Twin(Log(), view=0, record=2).follow(None, 2, 1)) == [("NoneType", 0)]


async def test_a_number_that_no_event_has_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="go up to 2"):
        await Twin(Log(), view=2, record=2).follow(None, 3, 1)


async def test_where_the_log_was_pruned_it_begins_anew() -> None:
    twin = Twin(Log(), view=2, record=2)
    twin.kept_from, twin.pruned = 2, 2
    assert await twin.follow(None, 1, 1) == [("Snapshot", 2)]
    twin.pruned = 1
    assert await twin.follow(None, 1, 1) == [("Changed", 2)]


async def test_a_replay_that_is_overtaken_by_the_pruning_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobStreams, "PAGE_SIZE", 1)
    twin = Twin(Log(), view=3, record=3)
    twin.kept_from = 9

    def prune() -> None:
        if twin.pages[-1:] == [1]:
            twin.pruned = 2

    twin.meanwhile = prune
    assert await twin.follow(None, 0, 2) == [("Changed", 1), ("Snapshot", 3)]


async def test_an_overflow_ends_the_stream_and_names_what_was_told_last() -> None:
    twin = Twin(Log(), view=2, record=2)
    twin.meanwhile = lambda: twin.subscription.overflow()
    assert await twin.follow(twin.log.job_id, None, 10) == [("Snapshot", 2), (Overflowed.__name__, 2)]


async def test_a_stream_ends_after_its_time_less_a_tenth_at_most() -> None:
    twin = Twin(Log(), view=2, record=2)
    streams = JobStreams(twin, twin, IngressSettings(max_stream_seconds=100), clock=lambda: twin.time)
    lives = []
    for _ in range(20):
        twin.time = 0
        async for item in streams.follow("ana", None, None, heartbeat_seconds=0):
            assert item is None or isinstance(item, Snapshot)
            twin.time += 0.5
        lives.append(twin.time)
    assert all(90 <= life <= 100.5 for life in lives)
    assert len(set(lives)) > 1, "by chance"
