import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import ShardLeased, TrackerUnavailable
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.ingress.live.events import Changed, Overflowed, Progressed
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.settings import IngressSettings
from avatarforge.tracker.eta import Forecast
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from tests.events import subscriber_count
from tests.factories import NOON, a_job, an_outcome
from tests.waiting import wait_until


def ended(job: ProfilePhotoJob) -> bool:
    return job.status.is_terminal


class Source:
    """A tracker whose answers the test puts in."""

    shards = 1

    def __init__(self) -> None:
        self.answers: asyncio.Queue[FeedBatch | TrackerUnavailable] = asyncio.Queue()
        self.asked: list[FeedCursor] = []
        self.seq = 0

    async def read_feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        self.asked.append(cursor)
        answer = await self.answers.get()
        if isinstance(answer, TrackerUnavailable):
            raise answer
        return answer

    def tell(self, *jobs: ProfilePhotoJob, kind: EventKind = EventKind.STARTED, **news: object) -> None:
        changes = []
        for job in jobs:
            self.seq += 1
            changes.append(
                JobChange(job=job, event=job.event(kind, NOON)).with_seq(self.seq).to_logged_change()
            )
        cursor = FeedCursor(tracker="1-a", seq=self.seq)
        self.answers.put_nowait(FeedBatch(cursor=cursor, changes=tuple(changes), **news))  # type: ignore[arg-type]  # named fields


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def live(source: Source) -> AsyncIterator[JobCache]:
    view = JobCache(source, IngressSettings())
    view.start()
    yield view
    await view.stop()


async def test_a_job_is_readable_as_soon_as_it_is_admitted(live: JobCache) -> None:
    job = a_job(seq=1)
    live.put(job)
    read = live.get("ana", job.job_id)
    assert read is not None
    assert read.job == job


async def test_another_customers_job_is_not_shown(live: JobCache) -> None:
    job = a_job(seq=1)
    live.put(job)
    assert live.get("bob", job.job_id) is None


async def test_waiting_ends_with_the_terminal_state(live: JobCache, source: Source) -> None:
    job = a_job(seq=1)
    source.seq = 1
    live.put(job)
    waiting = asyncio.create_task(live.wait_for("ana", job.job_id, ended, 30))
    started = job.start(NOON)
    source.tell(started)
    source.tell(started.complete(an_outcome(), NOON + timedelta(seconds=1)), kind=EventKind.DONE)
    last = await asyncio.wait_for(waiting, 5)
    assert last is not None
    assert last.job.status is ProcessingStatus.DONE


async def test_waiting_ends_with_the_time(live: JobCache) -> None:
    job = a_job(seq=1)
    live.put(job)
    still = await live.wait_for("ana", job.job_id, ended, 0.05)
    assert still is not None
    assert still.job.status is ProcessingStatus.PENDING


async def test_waiting_for_an_unknown_job_returns_at_once(live: JobCache) -> None:
    assert await asyncio.wait_for(live.wait_for("ana", "nobody", ended, 30), 1) is None


async def test_an_older_value_does_not_replace_a_newer_one(live: JobCache, source: Source) -> None:
    job = a_job()
    live.put(replace(job.start(NOON).complete(an_outcome(), NOON), seq=3))
    live.put(a_job(job_id=job.job_id, seq=1))
    source.tell(a_job())
    await wait_until(lambda: len(source.asked) > 1)
    read = live.get("ana", job.job_id)
    assert read is not None
    assert read.job.status is ProcessingStatus.DONE


async def test_progress_place_and_estimate_are_shown(live: JobCache, source: Source) -> None:
    running, next_one = a_job().start(NOON), a_job()
    source.tell(
        running,
        next_one,
        progress={running.job_id: GenerationProgress(step=5, total_steps=20)},
        forecast=Forecast(order=(next_one.job_id,), seconds={running.job_id: 3.0, next_one.job_id: 8.0}),
    )
    await wait_until(lambda: live.get("ana", next_one.job_id))
    first, second = live.get("ana", running.job_id), live.get("ana", next_one.job_id)
    assert first is not None
    assert second is not None
    assert (first.progress, first.queue_position, first.eta_seconds) == (
        GenerationProgress(step=5, total_steps=20),
        None,
        3.0,
    )
    assert (second.progress, second.queue_position, second.eta_seconds) == (None, 1, 8.0)


async def test_time_that_passed_before_a_job_came_is_not_taken_off_its_estimate(source: Source) -> None:
    now = 100.0
    view = JobCache(source, IngressSettings(), lambda: now)
    view.start()
    running, newcomer = a_job().start(NOON), a_job(seq=9)
    source.tell(running, forecast=Forecast(seconds={running.job_id: 30.0}, estimated_wait_seconds=4.0))
    await wait_until(lambda: view.get("ana", running.job_id))
    now += 20
    view.put(newcomer)
    old, new = view.get("ana", running.job_id), view.get("ana", newcomer.job_id)
    assert old is not None
    assert new is not None
    assert (old.eta_seconds, new.eta_seconds) == (10.0, 4.0)
    await view.stop()


async def test_an_erased_job_is_forgotten(live: JobCache, source: Source) -> None:
    job = a_job()
    source.tell(job, kind=EventKind.SUBMITTED)
    await wait_until(lambda: live.get("ana", job.job_id))
    source.tell(job.erase(), kind=EventKind.ERASED)
    await wait_until(lambda: live.get("ana", job.job_id) is None)


async def test_a_tracker_that_was_away_is_asked_again_from_where_the_view_stands(
    live: JobCache, source: Source
) -> None:
    assert live.lag == float("inf")
    source.tell(a_job())
    source.answers.put_nowait(TrackerUnavailable("killed by the test"))
    source.tell(a_job())
    await wait_until(lambda: len(source.asked) == 4)
    assert [cursor.seq for cursor in source.asked] == [0, 1, 1, 2]
    assert live.lag < 5


async def test_why_a_tracker_accepts_nothing_is_known_until_it_does(source: Source) -> None:
    live = JobCache(source, IngressSettings())
    live.start()
    source.answers.put_nowait(ShardLeased("Shard 0 is served by another cluster."))
    await wait_until(lambda: live.outage == "Shard 0 is served by another cluster.")
    source.tell(a_job(), outage="the database answers changes with its error 1146")
    await wait_until(lambda: live.outage == "the database answers changes with its error 1146")
    source.answers.put_nowait(TrackerUnavailable("killed by the test"))
    source.tell(a_job())
    await wait_until(lambda: live.outage is None)
    await live.stop()


async def test_old_finished_jobs_leave_the_view(source: Source) -> None:
    view = JobCache(source, IngressSettings(recent_jobs=2))
    view.start()
    jobs = [a_job().start(NOON).complete(an_outcome(), NOON) for _ in range(3)]
    source.tell(*jobs, kind=EventKind.DONE)
    await wait_until(lambda: view.get("ana", jobs[2].job_id))
    assert [view.get("ana", job.job_id) is None for job in jobs] == [True, False, False]
    await view.stop()


# --- what this replica changes itself -----------------------------------------------------------------------


async def test_one_who_waits_hears_at_once_of_what_the_replica_changes_itself(
    live: JobCache, source: Source
) -> None:
    job = a_job(seq=1)
    live.put(job)
    waiting = asyncio.create_task(live.wait_for("ana", job.job_id, ended, 30))
    await wait_until(lambda: live._waiters)
    cancelled = replace(job.cancel(NOON), seq=2)
    live.put(cancelled)
    last = await asyncio.wait_for(waiting, 1)
    assert last is not None
    assert last.job == cancelled


async def test_what_the_replica_erases_is_gone_at_once(live: JobCache) -> None:
    mine, other, others = a_job(seq=1), a_job(seq=2), a_job(seq=3, customer_id="ben")
    for job in (mine, other, others):
        live.put(job)
    waiting = asyncio.create_task(live.wait_for("ana", mine.job_id, ended, 30))
    await wait_until(lambda: live._waiters)
    live.remove("ben", mine.job_id)
    assert live.get("ana", mine.job_id) is not None
    live.remove("ana", mine.job_id)
    assert await asyncio.wait_for(waiting, 1) is None
    live.remove_customer("ana")
    assert live.get("ana", other.job_id) is None
    assert live.get("ben", others.job_id) is not None


# --- for streams ------------------------------------------------------------------------------------------


async def test_subscribers_hear_of_their_customers_changes_and_steps(live: JobCache, source: Source) -> None:
    source.tell()
    await live.wait_until_ready("ana")
    job, others = a_job().start(NOON), a_job(customer_id="ben").start(NOON)
    with live.subscribe("ana", None, 10) as subscription:
        assert subscriber_count(live) == 1
        source.tell(job, others, progress={job.job_id: GenerationProgress(step=5, total_steps=20)})
        news = [await subscription.next(5, 0), await subscription.next(5, 0), await subscription.next(0, 0)]
    assert [type(each) for each in news] == [Changed, Progressed, type(None)]
    assert [each.live.job.job_id for each in news if isinstance(each, Changed | Progressed)] == [
        job.job_id
    ] * 2
    assert subscriber_count(live) == 0


async def test_recent_changes_are_kept_from_the_first_answer_on(live: JobCache, source: Source) -> None:
    source.seq = 40
    source.tell()
    await live.wait_until_ready("ana")
    source.tell(a_job(), a_job(customer_id="ben"), a_job())
    await wait_until(lambda: live.seq("ana") == 43)
    assert live.recent_changes("ana", 39) is None, "before the first answer"
    assert live.recent_changes("ana", 44) is None, "not heard of yet"
    recent = live.recent_changes("ana", 40)
    assert recent is not None
    assert [change.event.seq for change in recent] == [41, 43]
    assert live.recent_changes("ana", 43) == []


async def test_only_so_many_changes_are_kept(source: Source) -> None:
    view = JobCache(source, IngressSettings(recent_events=2))
    view.start()
    source.tell()
    source.tell(a_job(), a_job(customer_id="ben"), a_job())
    await wait_until(lambda: view.seq("ana") == 3)
    assert view.recent_changes("ana", 0) is None
    assert [change.event.seq for change in view.recent_changes("ana", 1) or ()] == [3]
    await view.stop()


async def test_of_an_erased_job_only_the_erasure_is_kept(live: JobCache, source: Source) -> None:
    job = a_job()
    source.tell()
    source.tell(job, kind=EventKind.SUBMITTED)
    await wait_until(lambda: live.seq("ana") == 1)
    source.tell(job.erase(), kind=EventKind.ERASED)
    await wait_until(lambda: live.seq("ana") == 2)
    assert [change.job for change in live.recent_changes("ana", 0) or ()] == [None, None]


async def test_news_that_cannot_be_taken_in_are_asked_for_anew_and_clients_have_to_resume(
    live: JobCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobCache, "RETRY_SECONDS", 0)
    job = a_job()
    source.tell()
    source.tell(job)
    await wait_until(lambda: live.get("ana", job.job_id))
    with live.subscribe("ana", None, 10) as subscription:
        source.tell(progress=None)
        overflowed = await subscription.next(5, 1)
    # The job has ended meanwhile: no change will ever tell of it.
    source.seq = 9
    source.tell(snapshot=())
    await wait_until(lambda: live.seq("ana") == 9)
    assert isinstance(overflowed, Overflowed)
    assert FeedCursor() in source.asked[1:]
    assert live.list_unfinished("ana") == ()
    assert live.get("ana", job.job_id) is None
    assert live.recent_changes("ana", 2) is None


async def test_an_answer_that_comes_after_the_erasure_brings_no_job_back(
    live: JobCache, source: Source
) -> None:
    job = a_job()
    source.tell(job, kind=EventKind.SUBMITTED)
    source.seq = 2
    gone = job.erase()
    erasure = JobChange(job=gone, event=gone.event(EventKind.ERASED, NOON)).with_seq(2).to_logged_change()
    source.answers.put_nowait(FeedBatch(cursor=FeedCursor(tracker="1-a", seq=2), changes=(erasure,)))
    await wait_until(lambda: live.seq("ana") == 2)
    live.put(replace(job, seq=1))
    assert live.get("ana", job.job_id) is None
    assert live.list_unfinished("ana") == ()
