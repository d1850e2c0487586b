"""The client of the trackers, where answers are lost on their way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from structlog.contextvars import bound_contextvars, get_contextvars

from avatarforge.domain.changes import NewJob
from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.client import TrackerClient
from tests.factories import a_job
from tests.waiting import wait_until


class Actor:
    """A tracker's handle. What it is asked is noted; it answers as the test says, or never."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self, method)

    async def answer(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if method not in self._answers:
            await asyncio.Event().wait()
        return self._answers[method](*arguments)


class _Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self._actor.answer(self._name, *arguments)


def dead(*_: object) -> None:
    raise RayActorError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrackerClient, "COMMAND_TIMEOUT_SECONDS", 0.05)


async def test_a_submission_whose_answer_never_comes_is_read_back() -> None:
    job = a_job()
    actor = Actor(find=lambda *_: job)
    assert await TrackerClient([actor], retry_timeout=10).submit(NewJob(job=job)) == job
    assert actor.asked == ["submit", "find"]


async def test_a_call_for_many_submissions_is_not_in_the_context_of_the_first() -> None:
    job, contexts = a_job(), []

    def submit(_: object) -> list[ProfilePhotoJob]:
        contexts.append(get_contextvars())
        return [job]

    with bound_contextvars(job_id=job.job_id):
        await TrackerClient([Actor(submit=submit)], retry_timeout=10).submit(NewJob(job=job))
    assert contexts == [{}]


async def test_a_tracker_that_never_answers_refuses_the_submission_and_those_behind_it() -> None:
    trackers = TrackerClient([Actor()], retry_timeout=0.05)
    answers = await asyncio.wait_for(
        asyncio.gather(*(trackers.submit(NewJob(job=a_job())) for _ in range(3)), return_exceptions=True), 10
    )
    assert [type(answer) for answer in answers] == [TrackerUnavailable] * 3


async def test_a_command_whose_answer_never_comes_ends() -> None:
    trackers = TrackerClient([Actor()], retry_timeout=10)
    for ask in (
        lambda: trackers.execute(JobTrackerActor.acquire_key, "ana", "k1", "f"),
        lambda: trackers.execute(JobTrackerActor.release_key, "ana", "k1"),
        lambda: trackers.execute(JobTrackerActor.cancel, "ana", "1"),
        lambda: trackers.execute(JobTrackerActor.erase_customer, "ana"),
    ):
        with pytest.raises(TrackerUnavailable):
            await asyncio.wait_for(ask(), 10)


async def test_a_tracker_that_is_away_does_not_hold_up_what_another_is_to_take_back() -> None:
    away, present = Actor(retract=dead), Actor(retract=lambda *_: None)
    customers = {shard_of(customer_id, 2): customer_id for customer_id in map(str, range(100))}
    trackers = TrackerClient([away, present], retry_timeout=10)
    trackers.retract(customers[0], "1")
    await wait_until(lambda: away.asked == ["retract"])
    trackers.retract(customers[1], "2")
    await wait_until(lambda: present.asked == ["retract"])
    await trackers.close()
