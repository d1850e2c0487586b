"""Waiting for a job's changes with one request."""

import asyncio
import time
from typing import Any

from tests.integration.rest import problem
from tests.integration.service import SECONDS, Service
from tests.waiting import wait_until


async def waiting(service: Service, job_id: str, **query: object) -> "asyncio.Task[Any]":
    """A long-poll that has begun to wait."""
    task = asyncio.create_task(service.get(job_id, **query))
    await wait_until(lambda: task.done() or job_id in service.live._waiters)
    return task


async def test_one_who_waits_beyond_a_number_hears_of_the_next_change(service: Service) -> None:
    puppets = [service.puppet() for _ in range(3)]
    for _ in range(2):
        await service.submitted()
    job_id = await service.submitted()
    seen = service.recorded(job_id).seq
    poll = await waiting(service, job_id, after=seen)
    assert not poll.done()

    puppets[0].finish()
    status = (await asyncio.wait_for(poll, SECONDS)).json()

    assert (status["status"], status["seq"] > seen) == ("PROCESSING", True)


async def test_polling_from_number_to_number_misses_no_change(service: Service) -> None:
    puppet = service.puppet()
    job_id = await service.submitted()
    heard: list[dict[str, Any]] = []
    while not heard or not heard[-1]["isTerminal"]:
        seen = heard[-1]["seq"] if heard else 0
        heard.append((await service.get(job_id, after=seen)).json())
        if heard[-1]["status"] == "PROCESSING":
            puppet.finish()

    assert heard[-1]["status"] == "DONE"
    assert (await service.get(job_id, after=0)).json() == heard[-1]


async def test_one_who_has_heard_of_the_end_is_answered_at_once(service: Service) -> None:
    job_id = await service.submitted()
    end = (await service.ended(job_id))["seq"]

    async with asyncio.timeout(2):
        status = (await service.get(job_id, after=end, waitSeconds=30)).json()

    assert (status["status"], status["seq"]) == ("DONE", end)


async def test_the_end_is_told_at_once(service: Service) -> None:
    puppet = service.puppet()
    poll = await waiting(service, await service.submitted(), waitSeconds=30)
    await puppet.runs.wait()
    began = time.monotonic()
    puppet.finish()

    assert (await poll).json()["status"] == "DONE"
    assert time.monotonic() - began < 2


async def test_a_cancellation_through_the_same_replica_is_told_at_once(service: Service) -> None:
    job_id = await service.running()
    poll = await waiting(service, job_id, waitSeconds=30)

    await service.command("cancel", job_id)

    assert (await asyncio.wait_for(poll, SECONDS)).json()["status"] == "CANCELLED"


async def test_one_who_waits_for_a_job_that_is_erased_hears_that_there_is_none(service: Service) -> None:
    job_id = await service.running()
    poll = await waiting(service, job_id, waitSeconds=30)

    await service.erase(job_id)

    assert problem(await asyncio.wait_for(poll, SECONDS))["code"] == "job_not_found"


async def test_waiting_goes_on_over_the_death_of_the_tracker(service: Service) -> None:
    job_id = await service.running()
    poll = await waiting(service, job_id, waitSeconds=30)

    await service.kill_trackers()
    await service.start_trackers()

    assert (await asyncio.wait_for(poll, SECONDS)).json()["status"] == "DONE"


async def test_waiting_ends_with_its_time_and_leaves_nothing(service: Service) -> None:
    job_id = await service.running()
    began = time.monotonic()

    status = (await service.get(job_id, after=2, waitSeconds=0.3)).json()

    assert (status["status"], status["seq"]) == ("PROCESSING", 2)
    assert 0.3 <= time.monotonic() - began < 3
    assert service.live._waiters == {}


WRONG = {"after": ("abc", "-1", "1.5", "", "9" * 30), "waitSeconds": ("-1", "61", "soon")}


async def test_a_wrong_value_is_named(service: Service) -> None:
    job_id = await service.running()

    for name, value in ((name, value) for name, values in WRONG.items() for value in values):
        answer = await service.get(job_id, **{name: value})
        document = problem(answer)
        assert (answer.status_code, document["code"]) == (422, "invalid_request")
        assert (document["field"], document["value"]) == (name, value)
