"""Idempotency keys: an upload that is sent again makes no second job."""

import asyncio
from datetime import timedelta

import httpx
import pytest

from avatarforge import persistence
from avatarforge.domain.status import EventKind
from tests.holding import HeldCommits
from tests.integration.rest import a_jpeg, problem
from tests.integration.service import Service
from tests.waiting import wait_until


def jobs(service: Service, customer_id: str = "ana") -> list[str]:
    return [job.job_id for job in service.records.list_jobs(customer_id, None, 100)]


async def test_the_same_upload_under_its_key_is_the_same_job(service: Service) -> None:
    first = await service.post(key="k1", style="neon", seed="5")
    done = await service.ended(first.json()["jobId"])
    again = await service.post(key="k1", style="neon", seed="5")

    assert (first.status_code, again.status_code) == (202, 202)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == done
    assert jobs(service) == [done["jobId"]]
    assert len(service.objects()) == 2, "one original and one avatar"


async def test_a_key_in_quotes_is_the_same_key(service: Service) -> None:
    first = await service.post(key="k1")
    again = await service.post(key='"k1"')

    assert again.json()["jobId"] == first.json()["jobId"]


async def test_a_retry_under_its_key_is_one_new_job(service: Service) -> None:
    job_id = await service.submitted()
    await service.ended(job_id)
    other = await service.submitted()
    await service.ended(other)
    path, headers = "/customers/ana/photos/{}/retry", {"Idempotency-Key": "k1"}

    first = await service.client.post(path.format(job_id), headers=headers)
    again = await service.client.post(path.format(job_id), headers=headers)
    misused = await service.client.post(path.format(other), headers=headers)
    without = await service.client.post(path.format(job_id))

    assert (first.status_code, first.json()["retryOf"]) == (202, job_id)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["jobId"] == first.json()["jobId"]
    assert (misused.status_code, problem(misused)["code"]) == (422, "idempotency_key_reused")
    assert without.json()["jobId"] != first.json()["jobId"]
    assert len(jobs(service)) == 4


async def test_without_a_key_each_upload_is_a_job(service: Service) -> None:
    assert await service.submitted() != await service.submitted()


@pytest.mark.parametrize("changed", [{"photo": a_jpeg(80, 80)}, {"seed": "6"}, {"prompt": "smiling"}])
async def test_another_upload_under_the_key_is_refused(service: Service, changed: dict[str, object]) -> None:
    first = await service.post(key="k1", seed="5")

    answer = await service.post(key="k1", **{"seed": "5", **changed})  # type: ignore[arg-type]  # named fields

    document = problem(answer)
    assert (answer.status_code, document["code"]) == (422, "idempotency_key_reused")
    assert document["jobId"] == first.json()["jobId"]
    assert jobs(service) == [document["jobId"]]


async def test_while_the_first_is_under_way_the_second_hears_when_to_come_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCommits(service.records, EventKind.SUBMITTED)
    monkeypatch.setattr(service.records, "commit", held.commit)
    first = asyncio.create_task(service.post(key="k1"))
    await wait_until(lambda: held.waiting)

    refused = await service.post(key="k1")
    held.release()
    accepted = await first

    assert (refused.status_code, problem(refused)["code"]) == (409, "idempotency_key_in_flight")
    assert int(refused.headers["retry-after"]) >= 1
    assert accepted.status_code == 202
    assert (await service.post(key="k1")).headers["idempotent-replayed"] == "true"
    assert jobs(service) == [accepted.json()["jobId"]]


async def test_of_many_uploads_at_once_one_becomes_a_job(service: Service) -> None:
    answers = await asyncio.gather(*(service.post(key="k1") for _ in range(10)))

    accepted = {answer.json()["jobId"] for answer in answers if answer.status_code == 202}
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert jobs(service) == list(accepted)
    await wait_until(lambda: len({key.split("/")[2] for key in service.objects()}) == 1)


async def test_a_key_that_is_none_is_named_and_nothing_is_kept(service: Service) -> None:
    for key in ("k" * 10_240, "", "caf\u00e9", "tab\tbed"):
        answer = await service.client.post(
            "/customers/ana",
            files={"photo": ("me.jpg", a_jpeg())},
            headers=[(b"Idempotency-Key", key.encode("latin-1"))],
        )
        document = problem(answer)
        assert (answer.status_code, document["code"]) == (422, "invalid_request")
        assert document["field"] == "Idempotency-Key"
        assert len(answer.content) < 2000

    assert service.objects() == []
    assert service.records.find_customer("ana") is None


async def test_a_key_is_forgotten_after_a_day(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # The database is on the same machine.
    for module in (persistence.group, persistence.jobs):
        monkeypatch.setattr(module, "read_clock", lambda _: service.clock())
    first = await service.post(key="k1")
    service.clock.ahead = timedelta(hours=23)
    within = await service.post(key="k1")
    service.clock.ahead = timedelta(hours=25)
    after = await service.post(key="k1", seed="9")

    assert within.json()["jobId"] == first.json()["jobId"]
    assert after.status_code == 202
    assert "idempotent-replayed" not in after.headers
    assert after.json()["jobId"] != first.json()["jobId"]


async def test_customers_have_keys_of_their_own(service: Service) -> None:
    answers = [await service.post(customer_id, key="k1") for customer_id in ("ana", "Ana", "ben")]

    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["jobId"] for answer in answers}) == 3


async def test_an_upload_that_fails_frees_its_key(service: Service) -> None:
    def refused(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, problem(answer)["code"]

    assert refused(await service.post(key="k1", steps="many")) == (422, "invalid_request")
    assert refused(await service.post(key="k1", photo=b"no picture")) == (422, "photo_not_an_image")
    service.storage.away = True
    assert refused(await service.post(key="k1")) == (503, "storage_unavailable")
    service.storage.away = False

    answer = await service.post(key="k1", seed="1")

    assert (answer.status_code, answer.headers.get("idempotent-replayed")) == (202, None)


async def test_a_key_outlives_the_tracker(service: Service) -> None:
    first = await service.post(key="k1")
    await service.kill_trackers()
    away = await service.post(key="k1")
    await service.start_trackers()
    again = await service.post(key="k1")

    assert (away.status_code, problem(away)["code"]) == (503, "tracker_unavailable")
    assert again.headers["idempotent-replayed"] == "true"
    assert jobs(service) == [first.json()["jobId"]]


async def test_an_upload_that_is_under_way_when_its_tracker_dies_makes_one_job(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldCommits(service.records, EventKind.SUBMITTED)
    monkeypatch.setattr(service.records, "commit", held.commit)
    first = asyncio.create_task(service.post(key="k1"))
    await wait_until(lambda: held.waiting)
    dying = asyncio.create_task(service.kill_trackers())
    held.release()
    await dying
    await service.start_trackers()

    accepted, again = await first, await service.post(key="k1")

    assert [accepted.status_code, again.status_code] == [202, 202]
    assert again.headers["idempotent-replayed"] == "true"
    assert jobs(service) == [accepted.json()["jobId"]]


async def test_the_key_of_an_erased_job_is_free(service: Service) -> None:
    first = await service.post(key="k1")
    await service.ended(first.json()["jobId"])
    await service.erase(first.json()["jobId"])

    again = await service.post(key="k1")

    assert (again.status_code, again.headers.get("idempotent-replayed")) == (202, None)
    assert again.json()["jobId"] != first.json()["jobId"]
