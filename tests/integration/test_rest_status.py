"""Following a job over REST."""

import asyncio
import time
from typing import Any

import pytest

from avatarforge.domain.jobs import new_job_id
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.messages import LiveJob
from tests.integration.rest import Rest, a_jpeg, finished, problem, progressed, running_rest
from tests.waiting import wait_until


async def test_a_running_job_shows_its_steps(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.tracker.commit(job.start(job.created_at), EventKind.STARTED)
    progressed(rest, job, 7, 20)

    async def steps() -> Any:
        return (await rest.client.get(f"/customers/ana/photos/{job.job_id}/status")).json()["progress"]

    assert await wait_until(steps) == {"step": 7, "totalSteps": 20}


async def test_a_status_is_the_message_that_every_channel_tells(rest: Rest) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=5")

    assert answer.content == LiveJob(job=job).to_message().json_bytes()


async def test_a_job_that_the_view_has_forgotten_is_read_from_the_database(rest: Rest) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))
    async with running_rest(rest.settings.data_dir) as another:
        another.live._shards[0].finished.clear()

        answer = await another.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=5")

    assert answer.content == LiveJob(job=job).to_message().json_bytes()


async def test_a_long_poll_is_answered_as_soon_as_the_job_is_done(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    path = f"/customers/ana/photos/{job.job_id}/status?waitSeconds=30"
    waiting = asyncio.create_task(rest.client.get(path))
    await wait_until(lambda: rest.live._waiters)

    began = time.monotonic()
    await finished(rest, job)
    answer = await waiting

    assert answer.json()["status"] == "DONE"
    assert time.monotonic() - began < 2


async def test_a_long_poll_ends_with_its_time(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    began = time.monotonic()

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=0.3")

    assert answer.json()["status"] == "PENDING"
    assert 0.3 <= time.monotonic() - began < 3


async def test_a_long_poll_waits_for_a_job_of_which_the_view_has_not_heard(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProfilePhotoService, "RECHECK_INTERVAL_SECONDS", 0.05)
    job = await rest.submitted("ana", a_jpeg())
    async with running_rest(rest.settings.data_dir) as behind:
        path = f"/customers/ana/photos/{job.job_id}/status?waitSeconds=30"
        read = behind.records.find_job
        reads: list[str] = []
        monkeypatch.setattr(
            behind.records, "find_job", lambda *names: (reads.append(names[1]), read(*names))[1]
        )
        waiting = asyncio.create_task(behind.client.get(path))
        await wait_until(lambda: len(reads) > 1)
        started = behind.tracker.commit(job.start(job.created_at), EventKind.STARTED)
        behind.tracker.commit(started.cancel(job.created_at), EventKind.CANCELLED)

        answer = await asyncio.wait_for(waiting, 10)

    assert answer.json()["status"] == ProcessingStatus.CANCELLED


@pytest.mark.parametrize("value", ["-1", "1e9", "abc", "nan", "60.5", "", "1e999"])
async def test_a_wrong_wait_is_named_with_its_value(rest: Rest, value: str) -> None:
    job = await rest.submitted("ana", a_jpeg())

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds={value}")

    told = problem(answer)
    assert (answer.status_code, told["code"], told["field"]) == (422, "invalid_request", "waitSeconds")
    assert told["detail"] == f"waitSeconds is {value!r}, but it must be a number of seconds from 0 to 60."


@pytest.mark.parametrize("resource", ["status", "status?waitSeconds=5", "original", "generated"])
async def test_a_job_of_another_customer_is_not_found(rest: Rest, resource: str) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))
    await rest.submitted("ben", a_jpeg())

    answer = await rest.client.get(f"/customers/ben/photos/{job.job_id}/{resource}")

    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("job_id", [new_job_id(), "1", "x" * 3000, "%00"])
async def test_an_unknown_job_is_not_found(rest: Rest, job_id: str) -> None:
    answer = await rest.client.get(f"/customers/ana/photos/{job_id}/status?waitSeconds=30")

    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")
    assert len(answer.content) < 2000


async def test_a_database_that_is_away_is_a_503_for_reads_and_no_trouble_for_live_jobs(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.records.close()
    database = rest.settings.data_dir / "avatarforge.db"
    database.rename(database.with_suffix(".away"))
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.mkdir()

    live = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status")
    recorded = await rest.client.get("/customers/ana/photos")

    assert live.status_code == 200
    assert (recorded.status_code, problem(recorded)["code"]) == (503, "database_unavailable")
    assert recorded.headers["retry-after"]


async def test_what_is_no_job_id_never_reaches_the_database(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest.records, "find_job", None)

    assert (await rest.client.get("/customers/ana/photos/1/status")).status_code == 404


async def test_a_job_is_readable_through_its_replica_before_the_feed_tells_of_it(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rest.live.stop()
    monkeypatch.setattr(rest.records, "find_job", None)
    accepted = await rest.post("ana", a_jpeg())

    status = await rest.client.get(accepted.headers["location"])

    assert status.content == accepted.content
