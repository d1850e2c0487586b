import asyncio

import pytest

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.ingress.live.events import Changed, Erased, Overflowed, Progressed, Subscription
from avatarforge.messages import LiveJob
from tests.factories import NOON, a_job, an_outcome


def changed(job: ProfilePhotoJob, seq: int = 1) -> Changed:
    return Changed(seq=seq, live=LiveJob(job=job))


def step(job: ProfilePhotoJob, number: int = 1) -> Progressed:
    progress = GenerationProgress(step=number, total_steps=20)
    return Progressed(live=LiveJob(job=job, progress=progress), preview=None)


def a_subscription(job_id: str | None = None, most: int = 10) -> Subscription:
    return Subscription("ana", job_id, most)


async def all_of(subscription: Subscription) -> list[object]:
    """What waits, without waiting."""
    told: list[object] = []
    while (news := await subscription.next(0, seen=7)) is not None:
        told.append(news)
        if isinstance(news, Overflowed):
            break
    return told


async def test_changes_are_told_in_order() -> None:
    subscription, news = a_subscription(), [changed(a_job(), seq) for seq in (1, 2, 3)]
    for each in news:
        subscription.put(each)
    assert await all_of(subscription) == news


async def test_only_the_newest_step_of_a_job_waits() -> None:
    subscription, first, second = a_subscription(), a_job().start(NOON), a_job().start(NOON)
    steps = [step(first, 1), step(second, 1), step(first, 2), step(second, 2)]
    for each in steps:
        subscription.put(each)
    assert await all_of(subscription) == steps[2:]


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_silence_is_told_after_the_time(seconds: float) -> None:
    assert await a_subscription().next(seconds, seen=0) is None


async def test_one_who_waits_hears_at_once() -> None:
    subscription, news = a_subscription(), changed(a_job())
    waiting = asyncio.create_task(subscription.next(30, seen=0))
    await asyncio.sleep(0)
    subscription.put(news)
    assert await asyncio.wait_for(waiting, 1) is news


async def test_news_of_other_jobs_are_not_told() -> None:
    job, other = a_job(), a_job()
    subscription = a_subscription(job.job_id)
    wanted = [changed(job), Erased(seq=4, customer_id="ana", job_id=job.job_id)]
    for each in (changed(other), step(other.start(NOON)), wanted[0], wanted[1]):
        subscription.put(each)
    assert await all_of(subscription) == wanted


@pytest.mark.parametrize("end", ["done", "requeued", "erased"])
async def test_a_step_of_a_job_that_does_not_run_any_more_is_not_told(end: str) -> None:
    job = a_job().start(NOON)
    news = {
        "done": changed(job.complete(an_outcome(), NOON), 2),
        "requeued": changed(job.requeue(lost=True), 2),
        "erased": Erased(seq=2, customer_id="ana", job_id=job.job_id),
    }[end]
    subscription = a_subscription()
    subscription.put(step(job))
    subscription.put(news)
    assert await all_of(subscription) == [news]


async def test_more_than_fit_are_dropped_and_it_says_so_from_then_on() -> None:
    subscription = a_subscription(most=2)
    for seq in range(1, 6):
        subscription.put(changed(a_job(), seq))
    subscription.put(step(a_job()))
    for _ in range(2):
        overflowed = await subscription.next(0, seen=7)
        assert isinstance(overflowed, Overflowed)
        assert overflowed.seq == 7


async def test_steps_never_overflow() -> None:
    subscription, job = a_subscription(most=1), a_job().start(NOON)
    steps = [step(job, number) for number in range(100)]
    for each in steps:
        subscription.put(each)
    assert await all_of(subscription) == [steps[-1]]


async def test_one_who_waits_hears_of_an_overflow_from_elsewhere() -> None:
    subscription = a_subscription()
    waiting = asyncio.create_task(subscription.next(30, seen=3))
    await asyncio.sleep(0)
    subscription.overflow()
    told = await asyncio.wait_for(waiting, 1)
    assert isinstance(told, Overflowed)
    assert told.seq == 3
