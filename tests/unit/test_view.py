import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.ingress.view import LiveJobs
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from tests.factories import NOON, a_job, an_outcome
from tests.waiting import wait_until


class Source:
    """A tracker whose answers the test puts in."""

    shards = 1

    def __init__(self) -> None:
        self.answers: asyncio.Queue[FeedBatch | TrackerUnavailable] = asyncio.Queue()
        self.asked: list[FeedCursor] = []
        self.seq = 0

    async def feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        self.asked.append(cursor)
        answer = await self.answers.get()
        if isinstance(answer, TrackerUnavailable):
            raise answer
        return answer

    def tell(self, *jobs: ProfilePhotoJob, kind: EventKind = EventKind.STARTED, **news: object) -> None:
        changes = []
        for job in jobs:
            self.seq += 1
            changes.append(JobChange(job=job, event=job.event(kind, NOON)).numbered(self.seq).logged())
        cursor = FeedCursor(tracker="1-a", seq=self.seq)
        self.answers.put_nowait(FeedBatch(cursor=cursor, changes=tuple(changes), **news))  # type: ignore[arg-type]  # named fields


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def live(source: Source) -> AsyncIterator[LiveJobs]:
    view = LiveJobs(source)
    view.start()
    yield view
    await view.stop()


async def test_a_job_is_readable_as_soon_as_it_is_admitted(live: LiveJobs) -> None:
    job = a_job(seq=1)
    live.admit(job)
    read = live.get("ana", job.job_id)
    assert read is not None
    assert read.job == job


async def test_another_customers_job_is_not_shown(live: LiveJobs) -> None:
    job = a_job(seq=1)
    live.admit(job)
    assert live.get("bob", job.job_id) is None


async def test_waiting_ends_with_the_terminal_state(live: LiveJobs, source: Source) -> None:
    job = a_job(seq=0)
    live.admit(job)
    waiting = asyncio.create_task(live.terminal("ana", job.job_id, 30))
    started = job.started(NOON)
    source.tell(started)
    source.tell(started.done(an_outcome(), NOON + timedelta(seconds=1)), kind=EventKind.DONE)
    ended = await asyncio.wait_for(waiting, 5)
    assert ended is not None
    assert ended.job.status is ProcessingStatus.DONE


async def test_waiting_ends_with_the_time(live: LiveJobs) -> None:
    job = a_job(seq=1)
    live.admit(job)
    still = await live.terminal("ana", job.job_id, 0.05)
    assert still is not None
    assert still.job.status is ProcessingStatus.PENDING


async def test_waiting_for_an_unknown_job_returns_at_once(live: LiveJobs) -> None:
    assert await asyncio.wait_for(live.terminal("ana", "nobody", 30), 1) is None


async def test_an_older_value_does_not_replace_a_newer_one(live: LiveJobs, source: Source) -> None:
    job = a_job()
    live.admit(job.started(NOON).done(an_outcome(), NOON))
    live.admit(a_job(job_id=job.job_id, seq=0))
    source.tell(a_job())
    await wait_until(lambda: len(source.asked) > 1)
    read = live.get("ana", job.job_id)
    assert read is not None
    assert read.job.status is ProcessingStatus.DONE


async def test_progress_place_and_estimate_are_shown(live: LiveJobs, source: Source) -> None:
    running, next_one = a_job().started(NOON), a_job()
    source.tell(
        running,
        next_one,
        progress={running.job_id: GenerationProgress(step=5, total_steps=20)},
        order=(next_one.job_id,),
        seconds_per_job=4.0,
        running=1,
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


async def test_an_erased_job_is_forgotten(live: LiveJobs, source: Source) -> None:
    job = a_job()
    source.tell(job, kind=EventKind.SUBMITTED)
    await wait_until(lambda: live.get("ana", job.job_id))
    source.tell(job.erased(), kind=EventKind.ERASED)
    await wait_until(lambda: live.get("ana", job.job_id) is None)


async def test_a_tracker_that_was_away_is_asked_again_from_where_the_view_stands(
    live: LiveJobs, source: Source
) -> None:
    assert live.lag == float("inf")
    source.tell(a_job())
    source.answers.put_nowait(TrackerUnavailable("killed by the test"))
    source.tell(a_job())
    await wait_until(lambda: len(source.asked) == 4)
    assert [cursor.seq for cursor in source.asked] == [0, 1, 1, 2]
    assert live.lag < 5


async def test_old_finished_jobs_leave_the_view(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveJobs, "KEEP_FINISHED", 2)
    view = LiveJobs(source)
    view.start()
    jobs = [a_job().started(NOON).done(an_outcome(), NOON) for _ in range(3)]
    source.tell(*jobs, kind=EventKind.DONE)
    await wait_until(lambda: view.get("ana", jobs[2].job_id))
    assert [view.get("ana", job.job_id) is None for job in jobs] == [True, False, False]
    await view.stop()
