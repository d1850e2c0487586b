"""Two backends share the line: our own replicas and a remote server, by policy."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from avatarforge.domain.changes import NewJob
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import GenerationParameters, JobError, ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import RemoteSettings, TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import Ports, RemoteFallback
from avatarforge.tracker.queue.backends import Backend, Throughput
from avatarforge.tracker.queue.dispatcher import Dispatcher
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job, an_outcome
from tests.twins import MemoryDeletions, MemoryRecords, MemoryWebhooks, Script, ScriptedReplicas
from tests.waiting import wait_until


def made_by(backend: str) -> Script:
    async def script(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=1)
        yield GenerationFinished(outcome=an_outcome(backend=backend))

    return script


def failing(code: str, *, retryable: bool = True, away_seconds: float | None = None) -> Script:
    async def script(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        error = JobError(code=code, message="It went wrong.")
        yield GenerationFailed(error=error, retryable=retryable, away_seconds=away_seconds)

    return script


async def endless(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    while True:
        yield GenerationProgress(step=1, total_steps=3)
        await asyncio.sleep(0.05)


class Bench:
    """A tracker over twins with a local and a remote backend."""

    def __init__(self, folder: Path) -> None:
        self.records = MemoryRecords()
        self.local = ScriptedReplicas(script=made_by("local"))
        self.remote = ScriptedReplicas(script=made_by("remote"))
        self.broken: list[Exception] = []
        self.trackers: list[JobTracker] = []
        self._storage = FolderStorage(folder)

    async def start(self, policy: str, **settings: Any) -> JobTracker:
        """`settings` of the remote backend; nothing overflows unless they say so."""
        given = {"fallback_after_seconds": 60, "overflow_after_seconds": 1000} | settings
        remote = RemoteSettings(url="http://remote", policy=policy, **given)
        webhooks = MemoryWebhooks()
        tracker = JobTracker(
            0,
            TrackerSettings(lease_seconds=5),
            Ports(
                store=self.records,
                deletions=MemoryDeletions(self.records),
                deliveries=webhooks,
                storage=self._storage,
                webhooks=webhooks,
                replicas=self.local,
                remote=RemoteFallback(replicas=self.remote, settings=remote),
            ),
            on_broken=self.broken.append,
        )
        self.trackers.append(tracker)
        await tracker.start()
        return tracker

    async def ended(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        await wait_until(lambda: self.records.jobs[job.job_id].status.is_terminal)
        return self.records.jobs[job.job_id]

    async def backend_of(self, job: ProfilePhotoJob) -> str:
        ended = await self.ended(job)
        assert ended.outcome is not None, ended.error
        return ended.outcome.backend


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()
    assert bench.broken == []


def staying() -> ProfilePhotoJob:
    """A job whose photo may not leave the house."""
    return a_job(parameters=GenerationParameters(seed=1, allow_remote=False))


async def submitted(tracker: JobTracker, *jobs: ProfilePhotoJob) -> list[ProfilePhotoJob]:
    answers = await tracker.submissions.submit([NewJob(job=job) for job in jobs])
    return [job for job in answers if isinstance(job, ProfilePhotoJob)]


async def test_with_the_policy_remote_only_what_may_not_leave_stays(bench: Bench) -> None:
    tracker = await bench.start("remote")
    jobs = await submitted(tracker, a_job(), staying(), a_job(), staying())
    assert [await bench.backend_of(job) for job in jobs] == ["remote", "local", "remote", "local"]


async def test_while_local_replicas_answer_nothing_goes_to_the_remote_server(bench: Bench) -> None:
    tracker = await bench.start("local-then-remote")
    jobs = await submitted(tracker, *(a_job() for _ in range(10)))
    assert {await bench.backend_of(job) for job in jobs} == {"local"}
    assert bench.remote.tasks == []


async def test_without_a_local_replica_jobs_go_to_the_remote_server_after_a_while(bench: Bench) -> None:
    bench.local = ScriptedReplicas(slots=0)
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0.1)
    jobs = await submitted(tracker, a_job(), a_job(), staying())
    assert [await bench.backend_of(job) for job in jobs[:2]] == ["remote", "remote"]
    assert bench.records.jobs[jobs[2].job_id].status is ProcessingStatus.PENDING


async def test_a_job_that_may_not_leave_blocks_nobody_and_is_made_when_a_replica_is_back(
    bench: Bench,
) -> None:
    bench.local = ScriptedReplicas(slots=0, script=made_by("local"))
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0)
    first, second = await submitted(tracker, staying(), a_job())
    assert await bench.backend_of(second) == "remote"
    bench.local._slots.release()
    assert await bench.backend_of(first) == "local"


async def test_a_long_backlog_overflows_to_the_remote_server(bench: Bench) -> None:
    bench.local = ScriptedReplicas(slots=1, script=endless)
    tracker = await bench.start("local-then-remote", overflow_after_seconds=0.5)
    running, *waiting = await submitted(tracker, a_job(), a_job(), a_job(), staying())
    assert [await bench.backend_of(job) for job in waiting[:2]] == ["remote", "remote"]
    assert bench.records.jobs[running.job_id].status is ProcessingStatus.PROCESSING
    assert bench.records.jobs[waiting[2].job_id].status is ProcessingStatus.PENDING


async def broken(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationProgress(step=1, total_steps=3)
    raise ConnectionError("the replica died")


@pytest.mark.parametrize(
    "script", [broken, failing("device_failed"), failing("model_unusable", retryable=False)]
)
async def test_what_local_replicas_cannot_do_the_remote_server_does(bench: Bench, script: Script) -> None:
    bench.local.script = script
    tracker = await bench.start("local-then-remote")
    [job] = await submitted(tracker, a_job())
    assert await bench.backend_of(job) == "remote"
    assert (await bench.ended(job)).attempt == 2


async def test_what_the_remote_server_refuses_waits_for_a_local_replica(bench: Bench) -> None:
    bench.local = ScriptedReplicas(slots=0, script=made_by("local"))
    bench.remote.script = failing("remote_refused", retryable=False)
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0)
    [job] = await submitted(tracker, a_job())
    await wait_until(lambda: bench.records.jobs[job.job_id].worker_losses)
    bench.local._slots.release()
    assert await bench.backend_of(job) == "local"
    assert len(bench.remote.tasks) == 1


async def test_what_neither_backend_can_do_fails(bench: Bench) -> None:
    bench.local.script = failing("model_unusable", retryable=False)
    bench.remote.script = failing("remote_refused", retryable=False)
    tracker = await bench.start("local-then-remote")
    [job] = await submitted(tracker, a_job())
    failed = await bench.ended(job)
    assert failed.error == JobError(code="remote_refused", message="It went wrong.")
    assert failed.attempt == 2


async def test_what_breaks_at_the_remote_server_is_made_by_a_local_replica(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "RETRY_DELAY_SECONDS", 0.2)
    bench.local = ScriptedReplicas(slots=0, script=made_by("local"))
    bench.remote.script = failing("remote_failed")
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0.1)
    [job] = await submitted(tracker, a_job())
    await wait_until(lambda: bench.remote.tasks)
    bench.local._slots.release()
    assert await bench.backend_of(job) == "local"


async def test_a_photo_that_may_not_leave_fails_where_its_only_backend_cannot(bench: Bench) -> None:
    bench.local.script = failing("model_unusable", retryable=False)
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0)
    [job] = await submitted(tracker, staying())
    failed = await bench.ended(job)
    assert failed.error == JobError(code="model_unusable", message="It went wrong.")
    assert bench.remote.tasks == []


async def test_a_server_that_is_away_costs_no_attempt_and_is_left_alone(bench: Bench) -> None:
    away = failing("remote_unavailable", away_seconds=0.4)
    bench.remote.next_scripts.extend([away, away, away, away])
    tracker = await bench.start("remote")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    [job] = await submitted(tracker, a_job())
    assert await bench.backend_of(job) == "remote"
    done = await bench.ended(job)
    assert (done.attempt, done.worker_losses) == (5, 0)
    assert loop.time() - begun > 4 * 0.4


async def test_while_the_server_is_away_local_replicas_go_on(bench: Bench) -> None:
    bench.local = ScriptedReplicas(slots=0, script=made_by("local"))
    bench.remote.script = failing("remote_unavailable", away_seconds=60)
    tracker = await bench.start("local-then-remote", fallback_after_seconds=0.1)
    [job] = await submitted(tracker, a_job())
    await wait_until(lambda: bench.remote.tasks)
    bench.local._slots.release()
    assert await bench.backend_of(job) == "local"
    assert len(bench.remote.tasks) == 1


async def test_a_remote_worker_that_breaks_loses_attempts_until_the_job_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "RETRY_DELAY_SECONDS", 0.01)
    bench.remote.script = failing("remote_failed")
    tracker = await bench.start("remote")
    [job] = await submitted(tracker, a_job())
    failed = await bench.ended(job)
    assert failed.error is not None
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 3)
    assert failed.error.message == "It went wrong. 3 attempts were lost."


async def test_cancelling_a_job_stops_it_at_the_remote_server(bench: Bench) -> None:
    bench.remote.script = endless
    tracker = await bench.start("remote")
    [job] = await submitted(tracker, a_job())
    await wait_until(lambda: bench.remote.tasks)
    await tracker.commands.cancel(job.customer_id, job.job_id)
    await wait_until(lambda: bench.remote.closed == [job.job_id])


async def test_both_backends_share_the_turns_of_customers(bench: Bench) -> None:
    bench.remote = ScriptedReplicas(slots=1, script=made_by("remote"))
    tracker = await bench.start("remote")
    many = [a_job(customer_id="many") for _ in range(20)]
    single = a_job(customer_id="single")
    await submitted(tracker, *many, single)
    for job in (*many, single):
        await bench.ended(job)
    order = [task.job_id for task in bench.remote.tasks]
    assert order.index(single.job_id) < 5


class OneSlotEver:
    """Replicas of which one slot is had, and never another."""

    asked = 0

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[Any]:
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        yield None


async def test_a_backend_that_gives_no_second_slot_is_missed_from_the_end_of_its_first_job() -> None:
    now, job = 100.0, a_job()
    replicas = OneSlotEver()
    backend = Backend("local", replicas, Throughput(), lambda: now)

    async def ask() -> None:
        async with backend.slot():
            raise AssertionError("there is only one")

    async with backend.slot():
        backend.record_start(job)
        asking = asyncio.create_task(ask())
        await wait_until(lambda: replicas.asked == 2)
        now = 150.0
        assert backend.starved_seconds == 0
        backend.record_end(job.job_id)
    now = 157.0
    assert backend.starved_seconds == 7
    asking.cancel()
    await asyncio.wait({asking})
    assert backend.starved_seconds == 0
