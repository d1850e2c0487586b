"""What is lost, late or left behind, through the whole service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from avatarforge.diffusion.replica.draining import GIVEN_BACK
from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.generations import (
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from tests.integration.rest import problem
from tests.integration.service import Service, running_service
from tests.waiting import wait_until


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path, tracker={"commit_timeout_seconds": 2}) as service:
        yield service


# --- attempts ---------------------------------------------------------------------------------------------


async def test_what_a_lost_attempt_has_stored_is_removed_when_the_job_ends(service: Service) -> None:
    service.script(service.generations.lost)
    job_id = await service.submitted()
    ended = await service.ended(job_id)
    assert (ended["status"], ended["attempt"]) == ("DONE", 2)
    await wait_until(
        lambda: (
            [key.rpartition("/")[2] for key in service.objects(job_id)] == ["avatar-2.png", "original.jpg"]
        )
    )


async def test_a_job_whose_attempts_are_all_lost_keeps_nothing_but_its_original(service: Service) -> None:
    service.script(*[service.generations.lost] * 3)
    job_id = await service.submitted()
    ended = await service.ended(job_id)
    assert (ended["status"], ended["attempt"]) == ("FAILED", 3)
    assert ended["error"] == {
        "code": "worker_lost",
        "message": "The worker was lost (ConnectionError). 3 attempts were lost.",
    }
    await wait_until(lambda: [key.rpartition("/")[2] for key in service.objects(job_id)] == ["original.jpg"])


async def test_a_worker_that_is_lost_among_several_images_leaves_those_that_it_has_told(
    service: Service,
) -> None:
    async def lost(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationImage(image=service.generations.image(task, 0))
        service.generations.image(task, 1)
        raise ConnectionError

    service.script(lost)
    job_id = await service.submitted(variants="3")
    ended = await service.ended(job_id)
    assert (ended["status"], ended["attempt"]) == ("DONE", 2)
    assert [image["index"] for image in ended["images"]] == [0, 1, 2]
    assert [kind for _, kind in service.story(job_id)] == [
        *("submitted", "started", "image", "requeued", "started", "image", "done")
    ]
    wanted = ["avatar-1-0.png", "avatar-2-1.png", "avatar-2-2.png", "original.jpg"]
    await wait_until(lambda: [key.rpartition("/")[2] for key in service.objects(job_id)] == wanted)


async def test_work_that_is_given_back_by_stopping_workers_burns_no_attempt(service: Service) -> None:
    async def stopping(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=2)
        yield GIVEN_BACK

    service.script(*[stopping] * 5)
    job_id = await service.submitted()
    ended = await service.ended(job_id)
    assert (ended["status"], ended["attempt"]) == ("DONE", 6)
    assert service.recorded(job_id).worker_losses == 0


# --- deadlines --------------------------------------------------------------------------------------------


async def test_a_job_that_takes_longer_than_its_client_allows_fails(service: Service) -> None:
    job_id = await service.running(timeoutSeconds="1")
    ended = await service.ended(job_id)
    assert (ended["status"], ended["error"]["code"]) == ("FAILED", "deadline_exceeded")
    assert ended["error"]["message"] == "The job had not ended 1 seconds after its upload (timeoutSeconds)."
    await wait_until(lambda: service.replicas.closed == [job_id])


async def test_deadlines_outlive_the_tracker(service: Service) -> None:
    job_id = await service.running(timeoutSeconds="2", startTimeoutSeconds="1")
    service.puppet()
    await service.kill_trackers()
    await service.start_trackers()
    ended = await service.ended(job_id)
    assert (ended["error"]["code"], ended["attempt"]) == ("deadline_exceeded", 2)


@pytest.mark.parametrize("field", ["timeoutSeconds", "startTimeoutSeconds"])
@pytest.mark.parametrize("value", ["0", "0.99", "-1", "604801", "soon", "nan", "inf"])
async def test_a_deadline_that_makes_no_sense_is_refused(service: Service, field: str, value: str) -> None:
    refused = await service.post(**{field: value})
    assert refused.status_code == 422
    assert problem(refused)["detail"] == (
        f"{field} is {value!r}, but it must be a number of seconds from 1 to 604800."
    )


async def test_a_retry_has_the_time_of_the_first_job_once_more(service: Service) -> None:
    job_id = await service.running(timeoutSeconds="1")
    await service.ended(job_id)
    retried = (await service.command("retry", job_id)).json()["jobId"]
    assert (await service.ended(retried))["status"] == "DONE"
    assert service.recorded(retried).parameters.timeout_seconds == 1


# --- outages ----------------------------------------------------------------------------------------------


class Outage:
    """A database that answers nobody who writes."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commit, self._read_back = service.records.commit, service.records.read_back
        self.is_on = False
        monkeypatch.setattr(service.records, "commit", self.commit)
        monkeypatch.setattr(service.records, "read_back", self.read_back)

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        if self.is_on:
            raise DatabaseUnavailable("switched off by the test")
        return self._commit(shard, epoch, changes)

    def read_back(self, changes: Sequence[JobChange]) -> list[int] | None:
        if self.is_on:
            raise DatabaseUnavailable("switched off by the test")
        return self._read_back(changes)


@pytest.fixture
def outage(service: Service, monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(service, monkeypatch)


async def test_in_an_outage_what_runs_waits_unpublished_and_nothing_is_dispatched(
    service: Service, outage: Outage
) -> None:
    first, second = service.puppet(), service.puppet()
    jobs = [await service.submitted() for _ in range(6)]
    await asyncio.wait_for(asyncio.gather(first.runs.wait(), second.runs.wait()), 10)
    outage.is_on = True
    first.finish()
    second.finish()
    await wait_until(lambda: len(service.replicas.closed) == 2)
    refused = await service.post()
    assert (refused.status_code, problem(refused)["code"]) == (503, "database_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    # Both slots are free, and four jobs wait.
    assert len(service.replicas.tasks) == 2
    assert {service.recorded(job_id).status.value for job_id in jobs[:2]} == {"PROCESSING"}
    outage.is_on = False
    for job_id in jobs:
        ended = await service.ended(job_id)
        assert (ended["status"], ended["attempt"]) == ("DONE", 1)
        assert [kind for _, kind in service.story(job_id)].count("done") == 1


async def test_a_job_that_was_refused_and_kept_all_the_same_is_taken_back_by_the_next_tracker(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit's answer is lost, and the tracker dies before it learns of the outcome."""
    commit, is_cut = service.records.commit, True

    def cut(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        seqs = commit(shard, epoch, changes)
        if is_cut and any(change.is_submission for change in changes):
            raise DatabaseUnavailable("the connection was cut")
        return seqs

    def silent(changes: Sequence[JobChange]) -> list[int] | None:
        raise DatabaseUnavailable("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(service.records, "commit", cut)
        patched.setattr(service.records, "read_back", silent)
        refused = await service.post(key="once")
        assert refused.status_code == 503
        [kept] = service.records.list_jobs("ana", None, 10)
        await service.kill_trackers()
    is_cut = False
    await service.start_trackers()
    await wait_until(lambda: service.records.find_job("ana", kept.job_id) is None)
    assert service.story(kept.job_id)[-1][1] == "erased"
    assert not any("original" in key for key in service.objects())
    again = await service.post(key="once")
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (202, None)
    assert (await service.ended(again.json()["jobId"]))["status"] == "DONE"


# --- clocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)], ids=["back", "ahead"])
async def test_a_clock_that_jumps_loses_no_job_and_keeps_the_order(service: Service, jump: timedelta) -> None:
    puppets = [service.puppet(), service.puppet()]
    before = [await service.submitted(timeoutSeconds="600") for _ in range(3)]
    for puppet in puppets:
        await asyncio.wait_for(puppet.runs.wait(), 10)
    service.clock.ahead = jump
    after = [await service.submitted(timeoutSeconds="600") for _ in range(3)]
    for puppet in puppets:
        puppet.step(1)
        puppet.finish()
    ends = [await service.ended(job_id) for job_id in [*before, *after]]
    assert [(end["status"], end["attempt"]) for end in ends] == [("DONE", 1)] * 6
    assert [task.job_id for task in service.replicas.tasks] == [*before, *after]
    assert all(end["timings"]["queued"] >= 0 for end in ends)
    assert (await service.erase(before[0])).status_code == 204
    assert (await service.get(before[0])).status_code == 404
