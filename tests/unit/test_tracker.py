import asyncio
import io
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from avatarforge.background import Backoff
from avatarforge.domain.changes import IdempotencyKey, JobChange, KnownKey, NewJob
from avatarforge.domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyInFlight,
    JobNotFound,
    StorageUnavailable,
    TrackerUnavailable,
)
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import GenerationParameters, ImageFormat, JobError, ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.interface import StoredObject
from avatarforge.storage.keys import avatar_key, job_prefix, original_key
from avatarforge.tracker.feed import FeedCursor
from avatarforge.tracker.queue.backends import Backend, Backends
from avatarforge.tracker.queue.dispatcher import Dispatcher
from avatarforge.tracker.submissions import KeysInFlight
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job, a_report, an_outcome, empty
from tests.holding import HeldCommits
from tests.tracker_bench import SETTINGS, Bench, silent
from tests.twins import ScriptedReplicas
from tests.waiting import wait_until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for tracker in bench.trackers:
        await tracker.stop()


async def broken(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationProgress(step=1, total_steps=3)
    raise ConnectionError("the replica died")


async def refused(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationFailed(error=JobError(code="no_steps", message="Nothing to do."))


async def test_a_job_goes_from_submitted_to_done(bench: Bench) -> None:
    tracker = await bench.start()
    [accepted] = await tracker.submissions.submit([NewJob(job=a_job())])
    assert isinstance(accepted, ProfilePhotoJob)
    assert (accepted.status, accepted.seq) == (ProcessingStatus.PENDING, 1)
    done = await bench.ended(accepted)
    assert (done.status, done.attempt, done.outcome) == (ProcessingStatus.DONE, 1, an_outcome())
    assert done.timings["queued"] >= 0
    assert bench.story(done) == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.DONE]


async def test_a_lost_worker_sends_the_job_back_and_raises_the_attempt(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.next_scripts.append(broken)
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    done = await bench.ended(job)
    assert (done.status, done.attempt, done.worker_losses) == (ProcessingStatus.DONE, 2, 1)
    assert [task.attempt for task in bench.replicas.tasks] == [1, 2]


async def test_a_silent_worker_loses_its_lease_and_its_stream_is_closed(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.next_scripts.append(silent)
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    done = await bench.ended(job)
    assert (done.status, done.attempt) == (ProcessingStatus.DONE, 2)
    assert bench.replicas.closed == [job.job_id, job.job_id]


async def test_a_job_that_loses_three_workers_fails(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = broken
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 3)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"


async def test_a_generation_that_cannot_succeed_fails_at_once(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = refused
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 1)
    assert failed.error == JobError(code="no_steps", message="Nothing to do.")


async def test_a_stream_that_the_replica_cancels_loses_the_attempt_only(bench: Bench) -> None:
    async def cancelled(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=3)
        raise asyncio.CancelledError

    tracker = await bench.start()
    bench.replicas.next_scripts.append(cancelled)
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    done = await bench.ended(job)
    assert (done.status, done.worker_losses) == (ProcessingStatus.DONE, 1)


async def test_a_job_that_a_worker_gives_back_waits_before_it_goes_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sick(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationFailed(error=JobError(code="device_failed", message="Hot."), retryable=True)

    monkeypatch.setattr(Dispatcher, "RETRY_DELAY_SECONDS", 0.2)
    tracker = await bench.start()
    bench.replicas.script = sick
    began = time.monotonic()
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    failed = await bench.ended(job)
    assert (failed.status, failed.attempt) == (ProcessingStatus.FAILED, 3)
    assert time.monotonic() - began > 0.2 + 0.4


async def test_a_job_whose_end_the_database_refuses_fails_and_does_not_hang(bench: Bench) -> None:
    commit = bench.records.commit

    def picky(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        if any(change.event.kind is EventKind.DONE for change in changes):
            raise ValueError("a value is too long")
        return commit(shard, epoch, changes)

    bench.records.commit = picky  # type: ignore[method-assign]  # a database that refuses one kind of change
    tracker = await bench.start()
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    failed = await bench.ended(job)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (ProcessingStatus.FAILED, "internal_error")
    assert bench.broken == []


async def test_no_slot_is_held_while_the_database_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "HOLD_SECONDS", 0.1)
    bench.replicas = ScriptedReplicas(slots=1)
    tracker = await bench.start()
    bench.records.hold_starts = threading.Event()
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    await wait_until(lambda: bench.records.starts_held)
    async with asyncio.timeout(5), bench.replicas.reserve():
        bench.records.hold_starts.set()
    done = await bench.ended(job)
    assert (done.status, done.attempt, done.worker_losses) == (ProcessingStatus.DONE, 2, 0)


async def test_no_more_jobs_run_than_there_are_slots(bench: Bench) -> None:
    running = most = 0
    pair = asyncio.Barrier(2)

    async def counted(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield GenerationProgress(step=1, total_steps=1)
        # Nobody ends alone: both slots are in use.
        await pair.wait()
        running -= 1
        yield GenerationFinished(outcome=an_outcome())

    tracker = await bench.start()
    bench.replicas.script = counted
    jobs = await tracker.submissions.submit([NewJob(job=a_job()) for _ in range(20)])
    for job in jobs:
        assert isinstance(job, ProfilePhotoJob)
        await bench.ended(job)
    assert most == 2


async def test_jobs_in_flight_are_finished_by_the_next_tracker_and_published_once(bench: Bench) -> None:
    first = await bench.start()
    bench.replicas.script = silent
    jobs = await first.submissions.submit([NewJob(job=a_job()) for _ in range(20)])
    await wait_until(lambda: len(bench.replicas.tasks) >= 2)
    await first.stop()
    bench.replicas = ScriptedReplicas()
    await bench.start()
    for job in jobs:
        assert isinstance(job, ProfilePhotoJob)
        assert (await bench.ended(job)).status is ProcessingStatus.DONE
        assert bench.story(job).count(EventKind.DONE) == 1


async def test_an_interrupted_attempt_does_not_count_as_lost(bench: Bench) -> None:
    first = await bench.start()
    bench.replicas.script = silent
    [job] = await first.submissions.submit([NewJob(job=a_job())])
    await wait_until(lambda: bench.replicas.tasks)
    await first.stop()
    bench.replicas = ScriptedReplicas()
    await bench.start()
    done = await bench.ended(job)
    assert (done.attempt, done.worker_losses) == (2, 0)


async def test_an_overtaken_tracker_publishes_nothing_more(bench: Bench) -> None:
    gate = asyncio.Event()

    async def late(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=1)
        while not gate.is_set():
            yield GenerationProgress(step=1, total_steps=1)
            await asyncio.sleep(0.01)
        yield GenerationFinished(outcome=an_outcome(model="stale"))

    old = await bench.start()
    bench.replicas.next_scripts.append(late)
    [job] = await old.submissions.submit([NewJob(job=a_job())])
    await wait_until(lambda: bench.replicas.tasks)
    await bench.start()
    done = await bench.ended(job)
    gate.set()
    await wait_until(lambda: bench.broken)
    assert done.outcome == an_outcome()
    assert bench.records.jobs[job.job_id] == done
    assert bench.story(job).count(EventKind.DONE) == 1


async def test_a_submission_that_is_repeated_is_kept_once(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.script = silent
    job = a_job()
    [first] = await tracker.submissions.submit([NewJob(job=job)])
    [second] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(first, ProfilePhotoJob)
    assert isinstance(second, ProfilePhotoJob)
    assert bench.story(job).count(EventKind.SUBMITTED) == 1
    assert await tracker.submissions.find("ana", job.job_id) is not None


async def test_a_database_that_is_down_refuses_submissions(bench: Bench) -> None:
    tracker = await bench.start()
    bench.records.down = True
    [answer] = await tracker.submissions.submit([NewJob(job=a_job())])
    assert isinstance(answer, DatabaseUnavailable)


async def test_the_feed_tells_every_change_once_in_order(bench: Bench) -> None:
    tracker = await bench.start()
    batch = await tracker.feed.read(FeedCursor(), 0)
    assert batch.snapshot == ()
    await tracker.submissions.submit([NewJob(job=a_job()) for _ in range(10)])
    seqs: list[int] = []
    while len(seqs) < 30:
        batch = await tracker.feed.read(batch.cursor, 5)
        seqs += [change.event.seq for change in batch.changes]
        assert batch.cursor.seq == (seqs[-1] if seqs else 0)
    assert seqs == list(range(1, 31))


async def test_a_subscriber_resumes_with_the_next_tracker_from_its_last_seq(bench: Bench) -> None:
    first = await bench.start()
    cursor = (await first.feed.read(FeedCursor(), 0)).cursor
    [job] = await first.submissions.submit([NewJob(job=a_job())])
    assert isinstance(job, ProfilePhotoJob)
    await bench.ended(job)
    await first.stop()
    second = await bench.start()
    batch = await second.feed.read(cursor, 5)
    assert [change.event.kind for change in batch.changes] == [
        EventKind.SUBMITTED,
        EventKind.STARTED,
        EventKind.DONE,
    ]
    assert batch.snapshot == ()
    assert batch.cursor.tracker != cursor.tracker


async def test_the_feed_tells_progress_and_the_order_of_the_line(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    bench.settings = TrackerSettings(lease_seconds=60)
    tracker = await bench.start()
    cursor = (await tracker.feed.read(FeedCursor(), 0)).cursor
    jobs = await tracker.submissions.submit([NewJob(job=a_job()) for _ in range(3)])
    progress: dict[str, GenerationProgress] = {}
    order: tuple[str, ...] = ()

    async def heard() -> bool:
        nonlocal cursor, order
        batch = await tracker.feed.read(cursor, 0.1)
        cursor, order = batch.cursor, order if batch.forecast is None else batch.forecast.order
        progress.update(batch.progress)
        return bool(progress) and len(order) == 2

    await wait_until(heard)
    first, *others = [job.job_id for job in jobs if isinstance(job, ProfilePhotoJob)]
    assert progress == {first: GenerationProgress(step=1, total_steps=3)}
    assert list(order) == others


# --- cancelling and erasing -------------------------------------------------------------------------------


async def accepted(tracker: JobTracker, job: ProfilePhotoJob | None = None) -> ProfilePhotoJob:
    [answer] = await tracker.submissions.submit([NewJob(job=job or a_job())])
    assert isinstance(answer, ProfilePhotoJob)
    return answer


async def test_a_job_is_cancelled_while_it_waits_after_a_worker_gave_it_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sick(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationFailed(error=JobError(code="device_failed", message="Hot."), retryable=True)

    monkeypatch.setattr(Dispatcher, "RETRY_DELAY_SECONDS", 0.1)
    tracker = await bench.start()
    bench.replicas.next_scripts.append(sick)
    job = await accepted(tracker)
    await wait_until(lambda: EventKind.REQUEUED in bench.story(job))
    await tracker.commands.cancel("ana", job.job_id)
    await bench.ended(await accepted(tracker))
    await asyncio.sleep(0.15)
    assert bench.story(job)[-1] is EventKind.CANCELLED
    assert [task.job_id for task in bench.replicas.tasks].count(job.job_id) == 1


async def test_no_webhook_is_expected_of_an_erased_job_and_one_of_each_end(bench: Bench) -> None:
    tracker = await bench.start()
    url = "https://example.org/hook"
    done = await accepted(tracker, a_job(callback_url=url))
    await bench.ended(done)
    bench.replicas.next_scripts.append(silent)
    erased = await accepted(tracker, a_job(callback_url=url))
    await tracker.commands.erase("ana", erased.job_id)
    await bench.ended(await accepted(tracker))
    assert [delivery.job_id for delivery in bench.webhooks.expected] == [done.job_id]
    assert bench.webhooks.forgotten == [erased.job_id]


async def test_an_avatar_that_is_made_while_its_job_is_cancelled_is_removed(bench: Bench) -> None:
    avatar = an_outcome().avatar
    made = asyncio.Event()

    async def late(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=1)
        await made.wait()
        bench.storage.put(avatar.key, io.BytesIO(b"late"), avatar.media_type)
        yield GenerationFinished(outcome=an_outcome())

    held = HeldCommits(bench.records, EventKind.CANCELLED)
    bench.records.commit = held.commit  # type: ignore[method-assign]  # a slow database
    tracker = await bench.start()
    bench.replicas.next_scripts.append(late)
    job = await accepted(tracker)
    await wait_until(lambda: bench.replicas.tasks)
    cancelling = asyncio.create_task(tracker.commands.cancel("ana", job.job_id))
    await wait_until(lambda: held.waiting)
    made.set()
    await wait_until(lambda: bench.replicas.closed)
    assert list(bench.storage.list("")) != []
    held.release()
    assert (await cancelling).status is ProcessingStatus.CANCELLED
    await wait_until(lambda: list(bench.storage.list("")) == [])
    assert bench.story(job) == [EventKind.SUBMITTED, EventKind.STARTED, EventKind.CANCELLED]


async def test_a_tracker_that_is_still_starting_refuses_commands_after_a_while(bench: Bench) -> None:
    bench.records.down = True
    starting = asyncio.create_task(bench.start())
    await wait_until(lambda: bench.trackers)
    [tracker] = bench.trackers
    for command in (tracker.commands.cancel, tracker.commands.erase):
        with pytest.raises(DatabaseUnavailable):
            await command("ana", "1")
    bench.records.down = False
    await starting
    with pytest.raises(JobNotFound):
        await tracker.commands.cancel("ana", "1")


async def test_a_command_that_an_outage_holds_up_is_refused_and_carried_out_later(bench: Bench) -> None:
    tracker = await bench.start()
    bench.replicas.next_scripts.append(silent)
    job = await accepted(tracker)
    await wait_until(lambda: EventKind.STARTED in bench.story(job))
    bench.records.down = True
    with pytest.raises(DatabaseUnavailable):
        await tracker.commands.cancel("ana", job.job_id)
    bench.records.down = False
    await wait_until(lambda: bench.records.jobs[job.job_id].status is ProcessingStatus.CANCELLED)
    assert (await tracker.commands.cancel("ana", job.job_id)).status is ProcessingStatus.CANCELLED
    assert bench.replicas.closed == [job.job_id]


# --- idempotency keys -------------------------------------------------------------------------------------


def test_a_key_that_nobody_frees_is_free_after_a_while() -> None:
    time = 0.0
    keys = KeysInFlight(lambda: time)
    keys.acquire("ana", "k1")
    keys.acquire("ben", "k1")
    time = KeysInFlight.MAX_SECONDS - 1
    with pytest.raises(IdempotencyKeyInFlight):
        keys.acquire("ana", "k1")
    time = KeysInFlight.MAX_SECONDS + 1
    keys.acquire("ana", "k1")
    keys.release("ana", "k1")
    keys.acquire("ana", "k1")


def a_stored_job(bench: Bench) -> ProfilePhotoJob:
    """A job whose original is in storage."""
    job = a_job()
    job = replace(job, original=replace(job.original, key=original_key("ana", job.job_id, "image/png")))
    bench.storage.put(job.original.key, io.BytesIO(b"a photo"), "image/png")
    return job


async def test_a_second_job_of_one_key_is_refused_by_the_record(bench: Bench) -> None:
    tracker = await bench.start()
    key = IdempotencyKey(key="k1", fingerprint="f0" * 32)
    [first] = await tracker.submissions.submit([NewJob(job=a_stored_job(bench), idempotency_key=key)])
    [second] = await tracker.submissions.submit([NewJob(job=a_job(), idempotency_key=key)])
    assert isinstance(first, ProfilePhotoJob)
    assert isinstance(second, IdempotencyKeyInFlight)
    assert await tracker.submissions.acquire_key("ana", "k1", "f0" * 32) == KnownKey(
        fingerprint="f0" * 32, job_id=first.job_id
    )
    assert await tracker.submissions.acquire_key("ana", "k2", "f") is None
    with pytest.raises(IdempotencyKeyInFlight):
        await tracker.submissions.acquire_key("ana", "k2", "f")


async def test_a_key_whose_job_is_about_to_be_erased_is_no_answer(bench: Bench) -> None:
    """It was committed after its caller had been told 503: a second caller must not be told of it."""
    tracker = await bench.start()
    settled = threading.Event()
    read_back = bench.records.read_back

    def slow(changes: Sequence[JobChange]) -> list[int] | None:
        settled.wait(10)
        return read_back(changes)

    bench.records.read_back = slow  # type: ignore[method-assign]  # a database that comes back slowly
    bench.records.lose_answers = 1
    job = a_job()
    new = NewJob(job=job, idempotency_key=IdempotencyKey(key="mine", fingerprint="f"))
    [refused] = await tracker.submissions.submit([new])
    assert isinstance(refused, DatabaseUnavailable)
    with pytest.raises(IdempotencyKeyInFlight):
        await tracker.submissions.acquire_key(job.customer_id, "mine", "f")
    settled.set()
    await wait_until(lambda: EventKind.ERASED in bench.story(job))


@pytest.mark.parametrize("has_ended", [False, True], ids=["unfinished", "ended"])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "gone"])
async def test_a_key_whose_answer_was_lost_is_an_answer_while_its_original_is_there(
    bench: Bench, *, is_stored: bool, has_ended: bool
) -> None:
    """The original goes before a caller is told that the job is not kept, and the tracker knows nothing."""
    if not has_ended:
        bench.replicas.script = silent
    first = await bench.start()
    job = a_stored_job(bench) if is_stored else a_job()
    await first.submissions.submit(
        [NewJob(job=job, idempotency_key=IdempotencyKey(key="mine", fingerprint="f"))]
    )
    if has_ended:
        await bench.ended(job)
    await first.stop()
    second = await bench.start()
    if is_stored:
        assert await second.submissions.acquire_key("ana", "mine", "f") == KnownKey(
            fingerprint="f", job_id=job.job_id
        )
    elif has_ended:
        known = KnownKey(fingerprint="f", job_id=job.job_id)
        for another in ("another upload's", None):
            assert await second.submissions.acquire_key("ana", "mine", another) == known
        # Whoever was to have it erased may have died, or a backup was restored: the upload makes a new job.
        assert await second.submissions.acquire_key("ana", "mine", "f") is None
        again = a_stored_job(bench)
        key = IdempotencyKey(key="mine", fingerprint="f")
        await second.submissions.submit([NewJob(job=again, idempotency_key=key)])
        second.submissions.release_key("ana", "mine")
        assert await second.submissions.acquire_key("ana", "mine", "f") == KnownKey(
            fingerprint="f", job_id=again.job_id
        )
    else:
        with pytest.raises(IdempotencyKeyInFlight):
            await second.submissions.acquire_key("ana", "mine", "f")


async def test_a_key_of_a_job_that_was_rejected_is_no_answer_though_its_original_is_there(
    bench: Bench,
) -> None:
    """Storage may not have answered when the original was to be removed."""
    bench.replicas.script = silent
    tracker = await bench.start()
    job = a_stored_job(bench)
    await tracker.submissions.submit(
        [NewJob(job=job, idempotency_key=IdempotencyKey(key="mine", fingerprint="f"))]
    )
    tracker.submissions.reject(job.job_id)
    with pytest.raises(IdempotencyKeyInFlight):
        await tracker.submissions.acquire_key("ana", "mine", "f")


async def test_a_submission_that_comes_after_its_client_was_told_503_is_not_kept(bench: Bench) -> None:
    tracker = await bench.start()
    job = a_job()
    await tracker.commands.retract("ana", job.job_id)
    [late] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(late, TrackerUnavailable)
    assert bench.records.jobs == {}


async def test_a_tracker_that_is_not_ready_keeps_no_report_waiting(bench: Bench) -> None:
    bench.records.down = True
    starting = asyncio.create_task(bench.start())
    await wait_until(lambda: bench.trackers != [])
    with pytest.raises(DatabaseUnavailable):
        await bench.trackers[0].record_replica_report(a_report())
    bench.records.down = False
    await starting


@pytest.mark.parametrize("turns", range(6))
async def test_a_job_that_is_cancelled_while_a_step_comes_stops_all_the_same(
    bench: Bench, turns: int
) -> None:
    step = asyncio.Event()

    async def stepping(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=3)
        await step.wait()
        yield GenerationProgress(step=2, total_steps=3)
        await asyncio.Event().wait()

    bench.settings = TrackerSettings(lease_seconds=60)
    tracker = await bench.start()
    bench.replicas.script = stepping
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    assert isinstance(job, ProfilePhotoJob)
    await wait_until(lambda: bench.replicas.tasks)
    cancelling = asyncio.create_task(tracker.commands.cancel(job.customer_id, job.job_id))
    await wait_until(lambda: EventKind.CANCELLED in bench.story(job))
    step.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    assert (await cancelling).status is ProcessingStatus.CANCELLED
    await wait_until(lambda: bench.replicas.closed == [job.job_id])


async def test_a_job_that_waits_again_shows_no_steps_of_its_lost_attempt(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    tracker = await bench.start()
    bench.replicas.next_scripts.append(broken)
    bench.settings = SETTINGS
    [lost] = await tracker.submissions.submit([NewJob(job=a_job())])
    await wait_until(lambda: EventKind.REQUEUED in bench.story(lost))
    batch = await tracker.feed.read(FeedCursor(), 0)
    waiting = {job.job_id for job in batch.snapshot or () if job.status is ProcessingStatus.PENDING}
    assert not waiting & batch.progress.keys()


async def test_one_object_that_storage_keeps_holds_no_other_up(bench: Bench) -> None:
    class Clinging(FolderStorage):
        def delete(self, key: str) -> None:
            if "original" in key:
                raise StorageUnavailable("access denied")
            super().delete(key)

    bench.storage = Clinging(bench.folder)
    kept, gone = a_job(), a_job()
    bench.storage.put(original_key("ana", kept.job_id, "image/png"), io.BytesIO(b"1"), "image/png")
    bench.storage.put(avatar_key("ana", gone.job_id, 1, ImageFormat.PNG), io.BytesIO(b"2"), "image/png")
    bench.records.prefixes = [job_prefix("ana", gone.job_id), job_prefix("ana", kept.job_id)]
    await bench.start()
    await wait_until(lambda: bench.records.prefixes[0] == "")
    assert [stored.key for stored in bench.storage.list("")] == [
        original_key("ana", kept.job_id, "image/png")
    ]


async def test_storage_that_hangs_does_not_keep_others_from_the_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def hanging(prefix: str) -> Iterator[StoredObject]:
        let_go.wait(10)
        return iter(())

    monkeypatch.setattr(bench.storage, "list", hanging)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    tracker = await bench.start()
    bench.replicas.script = broken
    jobs = await tracker.submissions.submit([NewJob(job=a_job()) for _ in range(4)])
    for job in jobs:
        assert isinstance(job, ProfilePhotoJob)
        await bench.ended(job)
    try:
        assert await asyncio.wait_for(tracker.submissions.acquire_key("ana", "another", "f"), 5) is None
    finally:
        let_go.set()


# --- replicas ---------------------------------------------------------------------------------------------


async def test_the_last_good_model_is_on_record_for_the_next_tracker(bench: Bench) -> None:
    first = await bench.start()
    assert await first.record_replica_report(a_report()) == "first"
    await wait_until(lambda: bench.records.models == {0: "first"})
    await first.stop()
    second = await bench.start()
    assert await second.record_replica_report(a_report(desired_model="broken", model=None)) == "first"


async def test_the_last_good_model_is_recorded_once_the_database_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobTracker, "MODEL_BACKOFF", Backoff(0.02, 0.02))
    tracker = await bench.start()
    bench.records.down = True
    assert await tracker.record_replica_report(a_report()) == "first"
    bench.records.down = False
    await wait_until(lambda: bench.records.models == {0: "first"})
    assert bench.broken == []


async def test_a_long_line_is_not_searched_while_no_replica_has_a_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "RECHECK_SECONDS", 0.01)
    looked_at: list[str] = []
    accepts = Backends.accepts

    def noted(self: Backends, backend: Backend, job: ProfilePhotoJob) -> bool:
        looked_at.append(job.job_id)
        return accepts(self, backend, job)

    tracker = await bench.start()
    await tracker.record_replica_report(empty("a"))
    jobs = [NewJob(job=a_job()) for _ in range(20)]
    await tracker.submissions.submit(jobs)
    monkeypatch.setattr(Backends, "accepts", noted)
    await asyncio.sleep(0.1)
    assert looked_at == []
    await tracker.record_replica_report(a_report("a"))
    await bench.ended(jobs[-1].job)


async def test_replicas_and_the_work_before_them_are_told(bench: Bench) -> None:
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    bench.settings = TrackerSettings(lease_seconds=60)
    tracker = await bench.start()
    await tracker.record_replica_report(a_report(limit=1, step_seconds={1: 0.1}))
    wanted = GenerationParameters(seed=1, steps=10, strength=1.0)
    jobs = await tracker.submissions.submit([NewJob(job=a_job(parameters=wanted)) for _ in range(3)])
    await wait_until(lambda: bench.replicas.tasks)
    assert tracker.replicas.all() == (a_report(limit=1, step_seconds={1: 0.1}),)
    # The first has done 1 of 3 steps, as its replica says.
    expected = {"unfinished": 3, "running": 1, "waiting": 2, "replicas": 1, "backlogSeconds": 0.2 + 2 * 1.0}
    await wait_until(lambda: tracker.describe()["backlogSeconds"] == pytest.approx(2.2))
    told = tracker.describe()
    assert {name: told[name] for name in expected} == pytest.approx(expected)
    batch = await tracker.feed.read(FeedCursor(), 0)
    assert batch.reports == tracker.replicas.all()
    assert batch.forecast is not None
    ids = [job.job_id for job in jobs if isinstance(job, ProfilePhotoJob)]
    assert [batch.forecast.seconds[job_id] for job_id in ids] == pytest.approx([0.2, 1.2, 2.2])


async def test_jobs_wait_in_line_while_no_replica_has_a_model(bench: Bench) -> None:
    tracker = await bench.start()
    await tracker.record_replica_report(empty("a"))
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    assert isinstance(job, ProfilePhotoJob)
    await asyncio.sleep(2 * Dispatcher.RECHECK_SECONDS)
    assert bench.story(job) == [EventKind.SUBMITTED]
    await tracker.record_replica_report(a_report("a"))
    done = await bench.ended(job)
    assert (done.status, done.attempt) == (ProcessingStatus.DONE, 1)


async def test_a_job_that_a_replica_without_a_model_gives_back_loses_nothing(bench: Bench) -> None:
    async def without_model(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        error = JobError(code="model_missing", message="No model serves here.")
        yield GenerationFailed(error=error, retryable=True, away_seconds=0.0)

    tracker = await bench.start()
    bench.replicas.next_scripts.extend([without_model] * 5)
    [job] = await tracker.submissions.submit([NewJob(job=a_job())])
    done = await bench.ended(job)
    assert (done.status, done.attempt, done.worker_losses) == (ProcessingStatus.DONE, 6, 0)


# --- submissions that were refused, and committed all the same --------------------------------------------


async def test_a_refused_job_that_somebody_erases_meanwhile_is_erased_once(bench: Bench) -> None:
    answered, asked = threading.Event(), threading.Event()
    commit, find = bench.records.commit, bench.records.find_job

    def slow(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        seqs = commit(shard, epoch, changes)
        answered.wait(10)
        return seqs

    def noted(customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        asked.set()
        return find(customer_id, job_id)

    bench.records.commit = slow  # type: ignore[method-assign]  # the answer comes late
    bench.records.find_job = noted  # type: ignore[method-assign]  # so that the test knows how far the erasure is
    tracker = await bench.start()
    job = a_job()
    [refused] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(refused, DatabaseUnavailable)
    erasing = asyncio.create_task(tracker.commands.erase("ana", job.job_id))
    await wait_until(asked.is_set)
    answered.set()
    await erasing
    await bench.ended(await accepted(tracker))
    assert bench.story(job) == [EventKind.SUBMITTED, EventKind.ERASED]
    assert bench.broken == []


async def test_a_job_is_not_taken_back_before_it_is_known_whether_it_was_committed(bench: Bench) -> None:
    begun = threading.Event()
    commit = bench.records.commit

    def late(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        begun.wait(10)
        return commit(shard, epoch, changes)

    bench.records.commit = late  # type: ignore[method-assign]  # a transaction that waits for a lock
    tracker = await bench.start()
    job = a_job()
    [refused] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(refused, DatabaseUnavailable)
    with pytest.raises(DatabaseUnavailable):
        await tracker.commands.retract("ana", job.job_id)
    begun.set()
    await wait_until(lambda: bench.story(job) == [EventKind.SUBMITTED, EventKind.ERASED])
    await tracker.commands.retract("ana", job.job_id)


async def test_a_job_that_is_on_record_but_about_to_be_refused_is_not_told_as_kept(bench: Bench) -> None:
    landed, answered = threading.Event(), threading.Event()
    commit = bench.records.commit

    def slow(shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        seqs = commit(shard, epoch, changes)
        landed.set()
        answered.wait(10)
        return seqs

    bench.records.commit = slow  # type: ignore[method-assign]  # the answer comes late
    tracker = await bench.start()
    job = a_job()
    submitting = asyncio.create_task(tracker.submissions.submit([NewJob(job=job)]))
    await wait_until(landed.is_set)
    # The connection to the submitter breaks here: it asks what became of the job.
    assert await tracker.submissions.find("ana", job.job_id) is None
    [refused] = await submitting
    assert isinstance(refused, DatabaseUnavailable)
    [again] = await tracker.submissions.submit([NewJob(job=job)])
    assert isinstance(again, TrackerUnavailable)
    answered.set()
    await wait_until(lambda: bench.story(job) == [EventKind.SUBMITTED, EventKind.ERASED])
    assert await tracker.submissions.find("ana", job.job_id) is None
    assert bench.broken == []
