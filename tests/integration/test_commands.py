"""Cancel, retry and erase."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.jobs import ImageFormat, new_job_id
from avatarforge.domain.status import EventKind
from avatarforge.storage.keys import avatar_key
from avatarforge.tracker.cleanup.janitor import Janitor
from tests.holding import HeldCommits
from tests.integration.rest import problem
from tests.integration.service import Service, running_service
from tests.receivers import Receiver, answer
from tests.waiting import wait_until

ENDS = {"done", "failed", "cancelled"}


def kinds(service: Service, job_id: str) -> list[str]:
    return [kind for _, kind in service.story(job_id)]


async def cancelled(service: Service, job_id: str) -> dict[str, Any]:
    answer = await service.command("cancel", job_id)
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


# --- cancelling -------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_cancelled_and_never_starts(service: Service) -> None:
    running = [await service.running(), await service.running()]
    waiting = await service.submitted()

    status = await cancelled(service, waiting)

    assert (status["status"], status["isTerminal"], status["attempt"]) == ("CANCELLED", True, 0)
    assert status["finishedAt"] is not None
    assert kinds(service, waiting) == ["submitted", "cancelled"]
    for job_id in running:
        await cancelled(service, job_id)
    await service.ended(await service.submitted())
    assert waiting not in [task.job_id for task in service.replicas.tasks]


async def test_a_running_job_is_stopped_and_its_slot_is_free_again(service: Service) -> None:
    jobs = [await service.running(), await service.running()]

    for job_id in jobs:
        assert (await cancelled(service, job_id))["status"] == "CANCELLED"

    await wait_until(lambda: sorted(service.replicas.closed) == sorted(jobs))
    assert (await service.ended(await service.submitted()))["status"] == "DONE"
    assert [kinds(service, job_id) for job_id in jobs] == [["submitted", "started", "cancelled"]] * 2


async def test_a_job_is_cancelled_while_it_is_being_started(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCommits(service.records, EventKind.STARTED)
    monkeypatch.setattr(service.records, "commit", held.commit)
    job_id = await service.submitted()
    await wait_until(lambda: held.waiting)
    cancelling = asyncio.create_task(cancelled(service, job_id))
    held.release()

    assert (await cancelling)["status"] == "CANCELLED"
    assert kinds(service, job_id) == ["submitted", "started", "cancelled"]
    assert (await service.ended(await service.submitted()))["status"] == "DONE"
    assert kinds(service, job_id)[-1] == "cancelled"


async def test_cancelling_again_changes_nothing(service: Service) -> None:
    job_id = await service.running()

    first, second = await cancelled(service, job_id), await cancelled(service, job_id)

    assert first == second
    assert kinds(service, job_id).count("cancelled") == 1


async def test_cancelling_a_finished_job_is_refused(service: Service) -> None:
    job_id = await service.submitted()
    done = await service.ended(job_id)

    refused = await service.command("cancel", job_id)

    document = problem(refused)
    assert (refused.status_code, document["code"]) == (409, "illegal_transition")
    assert document["current"] == "DONE"
    assert (await service.get(job_id)).json() == done


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_a_command_for_a_job_that_is_not_the_customers_is_not_found(
    service: Service, command: str
) -> None:
    running, done = await service.running(), await service.submitted()
    await service.ended(done)

    for job_id, customer_id in ((running, "ben"), (done, "ben"), (new_job_id(), "ana"), ("1", "ana")):
        refused = await service.command(command, job_id, customer_id)
        assert (refused.status_code, problem(refused)["code"]) == (404, "job_not_found")
    assert (await service.get(running)).json()["status"] == "PROCESSING"


@pytest.mark.parametrize("finish_first", [True, False])
async def test_cancelling_in_the_moment_of_the_end_makes_one_end(
    service: Service, finish_first: bool
) -> None:
    for _ in range(5):
        puppet = service.puppet()
        job_id = await service.submitted()
        await puppet.runs.wait()
        if finish_first:
            puppet.finish()
        command = asyncio.create_task(service.command("cancel", job_id))
        await asyncio.sleep(0)
        puppet.finish()
        told = await command
        status = await service.ended(job_id)

        assert {200: "CANCELLED", 409: "DONE"}[told.status_code] == status["status"]
        assert len(ENDS & set(kinds(service, job_id))) == 1
        assert kinds(service, job_id)[-1] == status["status"].lower()
        images = 2 if status["status"] == "DONE" else 1
        await wait_until(lambda job_id=job_id, images=images: len(service.objects(job_id)) == images)


async def test_a_tracker_that_is_away_refuses_commands_and_changes_nothing(service: Service) -> None:
    job_id = await service.running()
    await service.kill_trackers()

    refused = [await service.command("cancel", job_id), await service.erase(job_id)]

    assert [(each.status_code, problem(each)["code"]) for each in refused] == [
        (503, "tracker_unavailable")
    ] * 2
    assert all(each.headers["retry-after"] for each in refused)
    await service.start_trackers()
    assert (await service.ended(job_id))["status"] == "DONE"


# --- retrying ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["DONE", "FAILED", "CANCELLED"])
async def test_a_job_that_has_ended_is_made_anew_with_its_own_original(service: Service, fate: str) -> None:
    if fate == "FAILED":
        service.script(service.generations.failing)
    if fate == "CANCELLED":
        service.puppet()
    job_id = await service.submitted(seed="5", style="neon", priority="3")
    if fate == "CANCELLED":
        await cancelled(service, job_id)
    assert (await service.ended(job_id))["status"] == fate
    photo = (await service.client.get(f"/customers/ana/photos/{job_id}/original")).content

    accepted = await service.command("retry", job_id)
    again = accepted.json()
    done = await service.ended(again["jobId"])
    await service.erase(job_id)

    assert (accepted.status_code, again["retryOf"], again["attempt"]) == (202, job_id, 0)
    assert accepted.headers["location"] == f"/customers/ana/photos/{again['jobId']}/status"
    assert (done["status"], done["seed"], done["retryOf"]) == ("DONE", 5, job_id)
    recorded = service.recorded(again["jobId"])
    assert (recorded.parameters.style, recorded.priority) == ("neon", 3)
    assert service.objects(job_id) == []
    assert (await service.client.get(done["originalUrl"])).content == photo


async def test_a_running_job_is_not_retried(service: Service) -> None:
    job_id = await service.running()

    refused = await service.command("retry", job_id)

    document = problem(refused)
    assert (refused.status_code, document["code"], document["current"]) == (
        409,
        "job_not_finished",
        "PROCESSING",
    )
    assert len(service.records.list_jobs("ana", None, 10)) == 1


async def test_a_job_whose_original_is_lost_is_not_retried(service: Service) -> None:
    job_id = await service.submitted()
    await service.ended(job_id)
    service.storage.delete(service.recorded(job_id).original.key)

    refused = await service.command("retry", job_id)

    assert (refused.status_code, problem(refused)["code"]) == (404, "image_not_found")
    assert len(service.records.list_jobs("ana", None, 10)) == 1


# --- erasing ----------------------------------------------------------------------------------------------


async def a_waiting_job(service: Service) -> str:
    for _ in range(2):
        await service.running("somebody")
    return await service.submitted()


async def a_running_job(service: Service) -> str:
    return await service.running()


async def a_done_job(service: Service) -> str:
    job_id = await service.submitted()
    await service.ended(job_id)
    return job_id


async def a_job_that_lost_an_attempt(service: Service) -> str:
    """Its first replica has stored an avatar that nobody names."""
    service.script(service.generations.lost)
    puppet = service.puppet()
    job_id = await service.submitted()
    await puppet.runs.wait()
    assert len(service.objects(job_id)) == 2
    return job_id


@pytest.mark.parametrize(
    "make",
    [a_waiting_job, a_running_job, a_done_job, a_job_that_lost_an_attempt],
    ids=lambda make: make.__name__,
)
async def test_of_an_erased_job_nothing_stays_but_numbers(service: Service, make: Any) -> None:
    job_id = await make(service)
    assert service.objects(job_id)

    erased = await service.erase(job_id)

    assert (erased.status_code, erased.content) == (204, b"")
    assert service.objects(job_id) == []
    assert service.records.find_job("ana", job_id) is None
    for resource in ("status", "original", "generated", "deliveries"):
        gone = await service.client.get(f"/customers/ana/photos/{job_id}/{resource}")
        assert (gone.status_code, problem(gone)["code"]) == (404, "job_not_found")
    assert (await service.client.get("/customers/ana/photos")).json()["photos"] == []
    assert [entry.job for entry in service.records.list_customer_events("ana", job_id, 0, 100)] == [
        None
    ] * len(service.story(job_id))
    assert kinds(service, job_id)[-1] == "erased"
    assert (await service.erase(job_id)).status_code == 404


async def test_a_job_that_is_erased_while_it_runs_publishes_nothing(service: Service) -> None:
    puppet = service.puppet()
    job_id = await service.submitted()
    await puppet.runs.wait()
    async with service.stream() as stream:
        await service.erase(job_id)
        puppet.finish()
        await service.ended(await service.submitted())
        events = [event for event in await stream.until("DONE") if event.kind != "progress"]

    assert [event.kind for event in events] == ["snapshot", "erased", "status", "status", "status"]
    assert kinds(service, job_id) == ["submitted", "started", "erased"]
    assert service.objects(job_id) == []
    assert service.replicas.closed[0] == job_id


async def test_an_avatar_that_a_lost_replica_stores_late_goes_too(service: Service) -> None:
    job_id = await a_running_job(service)
    await service.erase(job_id)
    service.storage.put(avatar_key("ana", job_id, 1, ImageFormat.PNG), io.BytesIO(b"late"), "image/png")

    service.clock.ahead = timedelta(days=1, minutes=1)
    await service.erase(await a_done_job(service))

    assert service.objects(job_id) == []


async def test_objects_go_once_storage_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Janitor, "INTERVAL_SECONDS", 0.05)
    async with running_service(tmp_path) as service:
        job_id = await a_done_job(service)
        service.storage.away = True

        assert (await service.erase(job_id)).status_code == 204
        assert (await service.get(job_id)).status_code == 404
        service.storage.away = False

        await wait_until(lambda: service.objects(job_id) == [])


async def test_objects_go_with_the_next_tracker_when_the_first_one_dies_before(service: Service) -> None:
    job_id = await a_done_job(service)
    service.storage.away = True
    await service.erase(job_id)
    await service.kill_trackers()
    service.storage.away = False
    await service.start_trackers()

    await wait_until(lambda: service.objects(job_id) == [])


async def test_an_erasure_that_meets_a_dying_tracker_can_be_asked_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await a_running_job(service)
    held = HeldCommits(service.records, EventKind.ERASED)
    monkeypatch.setattr(service.records, "commit", held.commit)
    erasing = asyncio.create_task(service.erase(job_id))
    await wait_until(lambda: held.waiting)
    dying = asyncio.create_task(service.kill_trackers())
    held.release()
    await dying

    assert (await erasing).status_code == 503
    await service.start_trackers()
    assert (await service.erase(job_id)).status_code in (204, 404)
    await wait_until(lambda: service.objects(job_id) == [])
    assert kinds(service, job_id) == ["submitted", "started", "erased"]
    assert (await service.get(job_id)).status_code == 404


async def test_a_job_is_not_erased_for_another_customer(service: Service) -> None:
    running, done = await a_running_job(service), await a_done_job(service)

    for job_id in (running, done):
        refused = await service.erase(job_id, "ben")
        assert (refused.status_code, problem(refused)["code"]) == (404, "job_not_found")
    assert len(service.objects()) == 3


# --- erasing customers ------------------------------------------------------------------------------------


async def test_a_customer_is_erased_with_every_job_and_image(service: Service) -> None:
    jobs = [await a_done_job(service), await service.running(), await service.running()]
    jobs.append(await service.submitted())
    await service.submitted("ben")

    erased = await service.client.delete("/customers/ana")

    assert erased.status_code == 204
    assert (await service.client.get("/customers/ana")).status_code == 404
    assert [(await service.get(job_id)).status_code for job_id in jobs] == [404] * 4
    assert service.records.list_jobs("ana", None, 10) == []
    assert [key for key in service.objects() if key.startswith("customers/ana/")] == []
    assert [kinds(service, job_id)[-1] for job_id in jobs] == ["erased"] * 4
    assert (await service.client.get("/customers/ben")).status_code == 200
    assert (await service.client.delete("/customers/ana")).status_code == 404
    assert (await service.ended(await service.submitted()))["status"] == "DONE"


async def test_a_customer_without_jobs_is_erased_too(service: Service) -> None:
    await service.erase(await a_done_job(service))

    assert (await service.client.delete("/customers/ana")).status_code == 204
    assert service.records.find_customer("ana") is None


@pytest.mark.parametrize(
    ("customer_id", "status", "code"),
    [("nobody", 404, "customer_not_found"), ("a%20b", 400, "invalid_customer_id")],
)
async def test_a_customer_who_is_not_known_is_not_erased(
    service: Service, customer_id: str, status: int, code: str
) -> None:
    refused = await service.client.delete(f"/customers/{customer_id}")

    assert (refused.status_code, problem(refused)["code"]) == (status, code)


# --- webhooks ---------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().serving() as receiver:
        yield receiver


async def test_deliveries_are_listed_and_sent_again(service: Service, receiver: Receiver) -> None:
    job_id = await service.submitted(callbackUrl=receiver.url())
    end = await service.ended(job_id)
    path = f"/customers/ana/photos/{job_id}/deliveries"

    async def arrived(times: int) -> dict[str, Any] | None:
        [delivery] = (await service.client.get(path)).json()["deliveries"]
        calls = len(delivery["attempts"])
        return delivery if delivery["state"] == "DELIVERED" and calls == times else None

    first = await wait_until(lambda: arrived(1))
    assert first is not None
    again = await service.client.post(f"{path}/{first['deliveryId']}/redeliver")
    second = await wait_until(lambda: arrived(2))
    unknown = await service.client.post(f"{path}/msg_unknown/redeliver")
    named = []
    for _ in range(2):
        redeliver = f"{path}/{first['deliveryId']}/redeliver"
        named.append(await service.client.post(redeliver, headers={"Idempotency-Key": "again"}))
        await wait_until(lambda: arrived(3))
        # A restored backup may lack it: the key stands for what was sent all the same.
        for key in service.objects(job_id):
            service.storage.delete(key)
    misused = await service.command("retry", job_id, headers={"Idempotency-Key": "again"})

    assert [answer.status_code for answer in named] == [202, 202]
    assert problem(misused)["code"] == "idempotency_key_reused"
    assert (first["seq"], first["attempts"][0]["status"]) == (end["seq"], 200)
    assert (again.status_code, again.json()["deliveryId"]) == (202, first["deliveryId"])
    assert second is not None
    assert [call.webhook_id for call in receiver.received] == [first["deliveryId"]] * 3
    assert (unknown.status_code, problem(unknown)["code"]) == (404, "delivery_not_found")


async def test_a_webhook_is_sent_again_when_its_first_request_was_kept_and_not_answered(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await service.submitted(callbackUrl=receiver.url())
    await service.ended(job_id)
    await wait_until(lambda: service.deliveries.list_pending(0) == [])
    [report] = service.deliveries.list_reports("ana", job_id)
    path = f"/customers/ana/photos/{job_id}/deliveries/{report.delivery.delivery_id}/redeliver"
    reschedule = service.deliveries.reschedule

    def reschedule_unheard(*arguments: Any) -> None:
        monkeypatch.undo()
        reschedule(*arguments)
        raise DatabaseUnavailable("the answer was lost")

    monkeypatch.setattr(service.deliveries, "reschedule", reschedule_unheard)
    answers = [await service.client.post(path, headers={"Idempotency-Key": "again"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 202]
    await wait_until(lambda: len(receiver.received) == 2)


async def test_a_webhook_is_sent_again_though_its_caller_gave_up_before_the_database_answered(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await service.submitted(callbackUrl=receiver.url())
    await service.ended(job_id)
    await wait_until(lambda: service.deliveries.list_pending(0) == [])
    [report] = service.deliveries.list_reports("ana", job_id)
    reschedule, asked, answered = service.deliveries.reschedule, threading.Event(), threading.Event()

    def reschedule_late(*arguments: Any) -> WebhookDelivery | None:
        asked.set()
        answered.wait()
        return reschedule(*arguments)

    monkeypatch.setattr(service.deliveries, "reschedule", reschedule_late)
    tracker = service.actors[0].tracker
    assert tracker is not None
    again = asyncio.create_task(tracker.commands.redeliver("ana", job_id, report.delivery.delivery_id))
    try:
        await wait_until(asked.is_set)
        again.cancel()
        await asyncio.wait({again})
    finally:
        answered.set()
    await wait_until(lambda: len(receiver.received) == 2)


async def test_the_webhooks_of_an_erased_job_go_with_it(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer(500)
    job_id = await service.submitted(callbackUrl=receiver.url())
    await service.ended(job_id)
    await wait_until(lambda: receiver.received)

    await service.erase(job_id)

    assert service.deliveries.list_reports("ana", job_id) == []
    assert service.deliveries.list_pending(0) == []
