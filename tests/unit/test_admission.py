"""How many jobs may wait, and who goes first among many."""

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from avatarforge.domain.changes import NewJob
from avatarforge.domain.errors import AvatarForgeError, BacklogFull, CustomerBacklogFull, DatabaseUnavailable
from avatarforge.domain.generations import GenerationFinished, GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.queue.admission import AdmissionControl
from avatarforge.tracker.queue.backends import Throughput
from tests.factories import a_job, an_outcome
from tests.tracker_bench import Bench, silent
from tests.twins import ScriptedReplicas
from tests.waiting import wait_until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.settings = TrackerSettings(
        lease_seconds=60, commit_timeout_seconds=0.3, max_backlog=5, max_backlog_per_customer=3
    )
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()


def news(customer_id: str, count: int) -> list[NewJob]:
    return [NewJob(job=a_job(customer_id=customer_id)) for _ in range(count)]


def kinds(answers: list[ProfilePhotoJob | AvatarForgeError]) -> list[str]:
    return [type(answer).__name__ for answer in answers]


async def test_a_customers_jobs_are_bounded_and_those_of_all(bench: Bench) -> None:
    tracker = await bench.start()
    assert kinds(await tracker.submissions.submit(news("ana", 4))) == ["ProfilePhotoJob"] * 3 + [
        "CustomerBacklogFull"
    ]
    assert kinds(await tracker.submissions.submit(news("ben", 3))) == ["ProfilePhotoJob"] * 2 + [
        "BacklogFull"
    ]
    assert len(bench.records.jobs) == 5


async def test_a_job_of_several_images_counts_as_so_many(bench: Bench) -> None:
    def several(customer_id: str, images: int) -> NewJob:
        return NewJob(
            job=a_job(customer_id=customer_id, parameters=GenerationParameters(seed=1, variants=images))
        )

    tracker = await bench.start()
    assert kinds(
        await tracker.submissions.submit([several("ana", 2), several("ana", 2), several("ana", 1)])
    ) == ["ProfilePhotoJob", "CustomerBacklogFull", "ProfilePhotoJob"]
    assert kinds(await tracker.submissions.submit([several("ben", 3), several("ben", 2)])) == [
        "BacklogFull",
        "ProfilePhotoJob",
    ]
    assert tracker.describe()["accepted"] == 5
    for job in list(bench.records.jobs.values()):
        await tracker.commands.cancel(job.customer_id, job.job_id)
    # More than there may be, yet nobody waits with it.
    assert kinds(await tracker.submissions.submit([several("ana", 8)])) == ["ProfilePhotoJob"]
    assert kinds(await tracker.submissions.submit(news("ben", 1))) == ["BacklogFull"]


async def test_a_job_that_has_ended_makes_room(bench: Bench) -> None:
    tracker = await bench.start()
    first, *_ = await tracker.submissions.submit(news("ana", 3))
    assert isinstance(first, ProfilePhotoJob)
    assert kinds(await tracker.submissions.submit(news("ana", 1))) == ["CustomerBacklogFull"]
    await tracker.commands.cancel("ana", first.job_id)
    assert kinds(await tracker.submissions.submit(news("ana", 1))) == ["ProfilePhotoJob"]


async def test_a_job_that_could_not_be_kept_takes_no_room(bench: Bench) -> None:
    tracker = await bench.start()
    bench.records.down = True
    assert kinds(await tracker.submissions.submit(news("ana", 3))) == [DatabaseUnavailable.__name__] * 3
    bench.records.down = False
    await wait_until(lambda: tracker.describe()["unfinished"] == 0)

    async def accepted() -> bool:
        return kinds(await tracker.submissions.submit(news("ana", 3))) == ["ProfilePhotoJob"] * 3

    await wait_until(accepted)


async def test_a_full_backlog_is_taken_over_by_the_next_tracker_and_stays_full(bench: Bench) -> None:
    first = await bench.start()
    await first.submissions.submit(news("ana", 3))
    await first.stop()
    second = await bench.start()
    assert kinds(await second.submissions.submit(news("ana", 1))) == ["CustomerBacklogFull"]


async def test_a_job_that_is_submitted_again_is_not_refused(bench: Bench) -> None:
    tracker = await bench.start()
    jobs = news("ana", 3)
    await tracker.submissions.submit(jobs)
    assert kinds(await tracker.submissions.submit(jobs[:1])) == ["ProfilePhotoJob"]


@pytest.mark.parametrize(
    ("seconds_per_job", "others", "expected"),
    [(None, 0, 10), (2.0, 0, 20), (2.0, 3, 80), (0.001, 0, 1), (1e9, 0, 3600)],
    ids=["unknown", "alone", "in turns", "at least a second", "at most an hour"],
)
def test_a_refused_customer_is_told_when_a_tenth_of_its_jobs_is_done(
    seconds_per_job: float | None, others: int, expected: int
) -> None:
    throughput = Throughput()
    throughput.interval = seconds_per_job
    admission = AdmissionControl(TrackerSettings(max_backlog=1000, max_backlog_per_customer=100), throughput)
    for number in range(others):
        admission.admit(a_job(customer_id=f"other-{number}"))
    for _ in range(100):
        admission.admit(a_job())
    with pytest.raises(CustomerBacklogFull) as refusal:
        admission.admit(a_job())
    assert (refusal.value.limit, refusal.value.retry_after) == (100, expected)


def test_all_are_told_when_a_tenth_of_all_jobs_is_done() -> None:
    throughput = Throughput()
    throughput.interval = 3.0
    admission = AdmissionControl(TrackerSettings(max_backlog=10, max_backlog_per_customer=10), throughput)
    for number in range(10):
        admission.admit(a_job(customer_id=str(number)))
    with pytest.raises(BacklogFull) as refusal:
        admission.admit(a_job())
    assert (refusal.value.limit, refusal.value.retry_after) == (10, 3)


async def test_a_thousand_jobs_of_one_customer_delay_anothers_by_those_that_run(bench: Bench) -> None:
    bench.settings = TrackerSettings(lease_seconds=60, commit_timeout_seconds=10)
    bench.replicas = ScriptedReplicas(slots=2)
    order: list[str] = []

    async def noted(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        order.append(task.customer_id)
        yield GenerationFinished(outcome=an_outcome())

    bench.replicas.script = noted
    tracker = await bench.start()
    await tracker.submissions.submit(news("many", 1000))
    await wait_until(lambda: len(order) > 20)
    [single] = await tracker.submissions.submit(news("single", 1))
    before = len(order)
    assert isinstance(single, ProfilePhotoJob)
    await bench.ended(single)
    # What had its slot, and a place in a commit, when the single one came.
    assert order.index("single") - before <= 4
