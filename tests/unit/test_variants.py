"""Jobs of several images in a tracker: publishing, lost attempts, slots, and the image that is kept."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from avatarforge.domain.changes import JobChange, NewJob
from avatarforge.domain.errors import InvalidRequest, JobNotFound
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import AvatarImage, GenerationParameters, JobError, ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.storage.keys import avatar_key
from avatarforge.tracker.feed import FeedCursor
from avatarforge.tracker.queue.dispatcher import Dispatcher
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job, a_report, an_image, an_outcome
from tests.tracker_bench import Bench
from tests.twins import Script, ScriptedReplicas
from tests.waiting import wait_until

LOST = GenerationFailed(error=JobError(code="worker_lost", message="Gone."), retryable=True)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.settings = TrackerSettings(commit_timeout_seconds=0.3, lease_seconds=60)
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()
    assert bench.broken == []


def of_images(count: int, customer_id: str = "ana", seed: int = 7) -> ProfilePhotoJob:
    return a_job(customer_id=customer_id, parameters=GenerationParameters(seed=seed, variants=count))


async def accepted(tracker: JobTracker, job: ProfilePhotoJob) -> ProfilePhotoJob:
    [answer] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(answer, ProfilePhotoJob)
    return answer


def stored(bench: Bench, task: GenerationTask, index: int) -> AvatarImage:
    """An image of the task, in storage."""
    key = avatar_key(task.customer_id, task.job_id, task.attempt, task.parameters.format, index)
    bench.storage.put(key, io.BytesIO(b"an image"), "image/png")
    return AvatarImage(index=index, seed=task.parameters.seed + index, style=None, stored=an_image(key=key))


def making(bench: Bench, *, until: int | None = None, end: GenerationUpdate | None = None) -> Script:
    """A replica that makes the missing images, or so many of them and then ends so, or hangs."""

    async def script(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=2)
        for index in task.missing[:until]:
            image = stored(bench, task, index)
            if index == task.missing[-1]:
                yield GenerationFinished(outcome=an_outcome(avatar=image.stored), image=image)
                return
            yield GenerationImage(image=image)
        if end is None:
            await asyncio.Event().wait()
        else:
            yield end

    return script


def keys(bench: Bench) -> set[str]:
    return {entry.key for entry in bench.storage.list("")}


async def test_each_image_is_an_event_and_the_last_one_the_end(bench: Bench) -> None:
    bench.replicas.script = making(bench)
    tracker = await bench.start()
    with capture_logs() as lines:
        job = await accepted(tracker, of_images(3))
        done = await bench.ended(job)
        await tracker.commands.keep("ana", job.job_id, 2)
    told = [(line["event"], line["index"]) for line in lines if line["event"].startswith("image")]
    assert told == [("image published", 0), ("image published", 1), ("image kept", 2)]
    assert [(image.index, image.seed) for image in done.images] == [(0, 7), (1, 8), (2, 9)]
    assert done.outcome is not None
    assert done.outcome.avatar == done.images[0].stored
    batch = await tracker.feed.read(FeedCursor(), 0)
    assert batch.snapshot == ()
    changes = [change for change in bench.records.log if change.job.job_id == job.job_id]
    assert [(change.event.kind, len(change.job.images)) for change in changes] == [
        (EventKind.SUBMITTED, 0),
        (EventKind.STARTED, 0),
        (EventKind.IMAGE, 1),
        (EventKind.IMAGE, 2),
        (EventKind.DONE, 3),
        (EventKind.KEPT, 3),
    ]
    assert tracker.describe()["localFinished"] == 3


async def test_a_lost_attempt_leaves_its_images_and_the_next_makes_only_the_others(bench: Bench) -> None:
    bench.replicas.next_scripts += [making(bench, until=1, end=LOST), making(bench, until=2, end=LOST)]
    bench.replicas.script = making(bench)
    tracker = await bench.start()
    job = await accepted(tracker, of_images(4))
    done = await bench.ended(job)
    assert [task.missing for task in bench.replicas.tasks] == [(0, 1, 2, 3), (1, 2, 3), (3,)]
    made_in = [image.stored.key.rpartition("/")[2].split("-")[1] for image in done.images]
    assert (done.status, made_in) == (ProcessingStatus.DONE, ["1", "2", "2", "3"])


async def test_a_replica_of_an_older_release_which_makes_one_image_leaves_the_job_to_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "RECHECK_SECONDS", 0.01)

    async def older(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationFinished(outcome=an_outcome(avatar=stored(bench, task, 0).stored))

    bench.replicas.next_scripts += [older] * (bench.settings.max_attempts + 1)
    bench.replicas.script = making(bench)
    tracker = await bench.start()
    done = await bench.ended(await accepted(tracker, of_images(2)))
    assert (done.status, done.worker_losses, len(done.images)) == (ProcessingStatus.DONE, 0, 2)
    await wait_until(lambda: keys(bench) == {image.stored.key for image in done.images})


async def test_the_next_tracker_has_only_the_missing_images_made(bench: Bench) -> None:
    bench.replicas.script = making(bench, until=2)
    first = await bench.start()
    job = await accepted(first, of_images(3))
    await wait_until(lambda: len(bench.records.jobs[job.job_id].images) == 2)
    await first.stop()
    bench.replicas = ScriptedReplicas(script=making(bench))
    await bench.start()
    done = await bench.ended(job)
    assert [task.missing for task in bench.replicas.tasks] == [(2,)]
    assert (done.attempt, len(done.images)) == (2, 3)


async def test_a_job_that_fails_keeps_the_images_that_it_has_and_nothing_else(bench: Bench) -> None:
    withheld = GenerationFailed(error=JobError(code="unsafe_content", message="Withheld."))

    async def late(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationImage(image=stored(bench, task, 1))
        stored(bench, task, 2)
        yield withheld

    bench.replicas.script = late
    tracker = await bench.start()
    failed = await bench.ended(await accepted(tracker, of_images(3)))
    assert (failed.status, [image.index for image in failed.images]) == (ProcessingStatus.FAILED, [1])
    await wait_until(lambda: keys(bench) == {failed.images[0].stored.key})


async def test_storage_is_not_asked_for_images_of_a_job_that_never_began(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=0)
    listed: list[str] = []
    list_objects = bench.storage.list
    bench.storage.list = lambda prefix: listed.append(prefix) or list_objects(prefix)  # type: ignore[method-assign,func-returns-value]
    tracker = await bench.start()
    job = await accepted(tracker, of_images(3))
    await tracker.commands.cancel("ana", job.job_id)
    began = a_job(parameters=job.parameters).start(job.created_at)
    cancelled = began.cancel(job.created_at)
    tracker._janitor.on_change(
        JobChange(job=cancelled, event=cancelled.event(EventKind.CANCELLED, job.created_at))
    )
    await wait_until(lambda: listed)
    assert all(began.job_id in prefix for prefix in listed)


async def test_an_image_that_comes_after_the_end_is_removed(bench: Bench) -> None:
    cancelled = asyncio.Event()

    async def late(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationImage(image=stored(bench, task, 0))
        await cancelled.wait()
        yield GenerationImage(image=stored(bench, task, 1))

    bench.replicas.script = late
    tracker = await bench.start()
    job = await accepted(tracker, of_images(3))
    await wait_until(lambda: len(bench.records.jobs[job.job_id].images) == 1)
    # The image arrives while the cancellation is being decided.
    async with tracker._job_table.lock_for(job.job_id):
        cancelling = asyncio.create_task(tracker.commands.cancel("ana", job.job_id))
        await asyncio.sleep(0)
        cancelled.set()
        await wait_until(lambda: len(keys(bench)) == 2)
    ended = await cancelling
    assert [image.index for image in ended.images] == [0]
    await wait_until(lambda: keys(bench) == {ended.images[0].stored.key})
    assert bench.story(job)[-1] is EventKind.CANCELLED


async def test_erasing_takes_every_image_along(bench: Bench) -> None:
    bench.replicas.script = making(bench, until=2)
    tracker = await bench.start()
    job = await accepted(tracker, of_images(3))
    await wait_until(lambda: len(bench.records.jobs[job.job_id].images) == 2)
    await tracker.commands.erase("ana", job.job_id)
    await wait_until(lambda: keys(bench) == set())


async def test_jobs_of_many_images_leave_the_slots_behind_them_to_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "RECHECK_SECONDS", 0.01)
    bench.replicas = ScriptedReplicas(slots=10, script=making(bench, until=0))
    tracker = await bench.start()
    await tracker.record_replica_report(a_report(limit=8))
    await tracker.submissions.submit([NewJob(job=of_images(8)) for _ in range(5)])
    # One that is made, and one whose photo is there when that ends.
    await wait_until(lambda: len(bench.replicas.tasks) == 2)
    single = await accepted(tracker, of_images(1, "ben"))
    assert tracker._dispatcher.queue.list_next(1) == (single.job_id,)
    assert tracker.describe()["localRunning"] == 16
    assert tracker.describe()["waiting"] == 25
    [running, _] = [task.job_id for task in bench.replicas.tasks]
    await tracker.commands.cancel("ana", running)
    await wait_until(lambda: len(bench.replicas.tasks) == 3)
    assert bench.replicas.tasks[-1].job_id == single.job_id


async def test_one_job_of_many_images_leaves_the_other_replicas_to_the_next(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=10, script=making(bench, until=0))
    tracker = await bench.start()
    for replica_id in ("a", "b"):
        await tracker.record_replica_report(a_report(replica_id, limit=1))
    many, single = await accepted(tracker, of_images(8)), await accepted(tracker, of_images(1, "ben"))
    await wait_until(lambda: len(bench.replicas.tasks) == 2)
    assert [task.job_id for task in bench.replicas.tasks] == [many.job_id, single.job_id]


async def test_jobs_of_one_image_take_every_slot(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=10, script=making(bench, until=0))
    tracker = await bench.start()
    await tracker.record_replica_report(a_report(limit=4))
    for _ in range(12):
        await accepted(tracker, of_images(1))
    await wait_until(lambda: len(bench.replicas.tasks) == 10)


# --- the image that is kept -------------------------------------------------------------------------------


async def test_an_image_is_kept_while_the_others_are_made_and_another_one_after_the_end(bench: Bench) -> None:
    go_on = asyncio.Event()

    async def pausing(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationImage(image=stored(bench, task, 1))
        await go_on.wait()
        async for update in making(bench)(task):
            if not (isinstance(update, GenerationImage) and update.image.index == 1):
                yield update

    bench.replicas.script = pausing
    tracker = await bench.start()
    job = await accepted(tracker, of_images(3))
    await wait_until(lambda: bench.records.jobs[job.job_id].images)
    assert (await tracker.commands.keep("ana", job.job_id, 1)).kept == 1
    go_on.set()
    done = await bench.ended(job)
    assert (done.kept, len(done.images)) == (1, 3)
    again = await tracker.commands.keep("ana", job.job_id, 2)
    assert (again.kept, again.status, again.seq) == (2, ProcessingStatus.DONE, done.seq + 1)
    # The same once more is no change.
    assert await tracker.commands.keep("ana", job.job_id, 2) == again
    assert bench.story(job)[-2:] == [EventKind.DONE, EventKind.KEPT]
    assert bench.records.jobs[job.job_id] == again
    assert tracker._job_table.get(job.job_id) is None


async def test_a_choice_right_after_a_start_does_not_lose_the_attempt(bench: Bench) -> None:
    bench.replicas.next_scripts.append(making(bench, until=1, end=LOST))
    bench.replicas.script = making(bench)
    tracker = await bench.start()
    update = tracker._job_table.update

    async def start_and_choose(job_id, transition, kind):  # type: ignore[no-untyped-def]
        job = await update(job_id, transition, kind)
        if kind is EventKind.STARTED and job.images:
            await tracker.commands.keep("ana", job_id, 0)
        return job

    tracker._job_table.update = start_and_choose  # type: ignore[method-assign]  # a client who is quick
    done = await bench.ended(await accepted(tracker, of_images(2)))
    assert (done.status, done.kept, done.attempt) == (ProcessingStatus.DONE, 0, 2)


async def test_only_an_image_that_is_there_can_be_kept_and_only_by_its_customer(bench: Bench) -> None:
    bench.replicas.script = making(bench, until=1)
    tracker = await bench.start()
    job = await accepted(tracker, of_images(2))
    await wait_until(lambda: bench.records.jobs[job.job_id].images)
    with pytest.raises(InvalidRequest, match="index is 1"):
        await tracker.commands.keep("ana", job.job_id, 1)
    with pytest.raises(JobNotFound):
        await tracker.commands.keep("ben", job.job_id, 0)
    with pytest.raises(JobNotFound):
        await tracker.commands.keep("ana", "unknown", 0)


async def test_a_choice_after_the_end_tells_no_webhook_and_counts_no_second_end(bench: Bench) -> None:
    bench.replicas.script = making(bench)
    tracker = await bench.start()
    wanted = a_job(
        parameters=GenerationParameters(seed=1, variants=2), callback_url="https://example.org/hook"
    )
    job = await bench.ended(await accepted(tracker, wanted))
    await tracker.commands.keep("ana", job.job_id, 1)
    assert len(bench.webhooks.expected) == 1
    ended = tracker.metrics.read().own.counters["avatarforge_jobs_ended_total", ("DONE", "")]
    assert ended == 1
