"""What an erasure leaves, and the deletions of objects that it asks for, over SQLite and MariaDB alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from avatarforge.domain.customers import CustomerSummary
from avatarforge.domain.deliveries import DeliveryAttempt, WebhookDelivery
from avatarforge.domain.errors import JobNotFound, StaleEpoch
from avatarforge.domain.jobs import ImageFormat, ProfilePhotoJob
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository
from avatarforge.persistence.erasure import STRAGGLER_PAUSE
from avatarforge.persistence.tables import job_events, metadata, profile_photos
from avatarforge.storage.keys import avatar_key, job_prefix, original_key
from tests.factories import NOON
from tests.jobs import (
    FENCE,
    a_detailed_job,
    a_followed_job,
    a_job,
    a_key,
    cancellation,
    erasure,
    failure,
    finish,
    later,
    start,
    submission,
)

ERASED_AT = erasure(a_job()).event.at


# --- rows ---------------------------------------------------------------------------------------------


def test_an_erased_job_leaves_ids_and_numbers_only(
    records: JobRepository, epoch: int, engine: Engine
) -> None:
    job, kept = a_detailed_job(), a_detailed_job()
    done = finish(start(job).job)
    *_, last = records.commit(0, epoch, [submission(job), start(job), done, submission(kept)])

    [seq] = records.commit(0, epoch, [erasure(done.job)])

    assert records.find_job("ana", job.job_id) is None
    assert records.list_jobs("ana", None, 10) == [replace(kept, seq=last)]
    entries = records.list_shard_events(0, 0, 10)
    assert [entry.event.kind for entry in entries] == ["submitted", "started", "done", "submitted", "erased"]
    assert [entry.job for entry in entries] == [None, None, None, replace(kept, seq=last), None]
    assert entries[-1].event.seq == seq
    with engine.connect() as connection:
        assert connection.scalars(select(profile_photos.c.job_id)).all() == [kept.job_id]
        ended = connection.scalars(select(job_events.c.terminal_job_id).order_by(job_events.c.seq)).all()
    assert ended == [None, None, job.job_id, None, None]


def test_only_events_and_the_deletion_of_objects_name_an_erased_job(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int, engine: Engine
) -> None:
    job, kept = a_followed_job(), a_followed_job()
    group = [submission(job, a_key("one")), submission(kept, a_key("two")), start(job), start(kept)]
    done = finish(start(job).job)
    records.commit(0, epoch, [*group, done, finish(start(kept).job)])
    for delivery in deliveries.list_pending(0):
        assert deliveries.record(delivery, an_attempt(), FENCE)
    everywhere = _tables_that_name(engine, kept)
    assert _tables_that_name(engine, job) == everywhere
    # But for customers, shards, clusters, keys, tickets, secrets of webhooks and, still, deletions.
    assert len(everywhere) == len(metadata.tables) - 7

    records.commit(0, epoch, [erasure(done.job)])

    assert _tables_that_name(engine, job) == {"job_events", "object_deletions"}
    assert _tables_that_name(engine, kept) == everywhere


def test_a_job_that_is_submitted_and_erased_in_one_commit_leaves_no_prompt(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int, engine: Engine
) -> None:
    job = a_detailed_job()
    cancelled = cancellation(job)

    records.commit(0, epoch, [submission(job, a_key()), cancelled, erasure(cancelled.job)])

    assert records.find_job("ana", job.job_id) is None
    assert [entry.job for entry in records.list_shard_events(0, 0, 10)] == [None, None, None]
    assert deliveries.list_pending(0) == []
    assert _tables_that_name(engine, job) == {"job_events", "object_deletions"}


def test_an_erased_job_cannot_end_once_more(records: JobRepository, epoch: int) -> None:
    job = a_job()
    done = finish(start(job).job)
    records.commit(0, epoch, [submission(job), start(job), done, erasure(done.job)])
    late = replace(done, event=replace(done.event, revision=17))

    with pytest.raises((IntegrityError, JobNotFound)):
        records.commit(0, epoch, [late])


def test_an_erased_jobs_idempotency_key_is_free_again(records: JobRepository, epoch: int) -> None:
    job, again = a_job(), a_job()
    records.commit(0, epoch, [submission(job, a_key())])

    records.commit(0, epoch, [erasure(job)])

    assert records.find_key("ana", "upload-1", NOON) is None
    assert records.commit(0, epoch, [submission(again, a_key())])


def test_an_erased_delivery_can_neither_be_recorded_nor_asked_for_again(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    job = a_followed_job()
    failed = failure(start(job).job)
    records.commit(0, epoch, [submission(job), failed])
    [delivery] = deliveries.list_pending(0)

    records.commit(0, epoch, [erasure(failed.job)])

    assert not deliveries.record(delivery, an_attempt(), FENCE)
    assert deliveries.reschedule("ana", job.job_id, delivery.delivery_id, later(60), FENCE) is None
    assert deliveries.find_delivery(delivery.delivery_id) is None
    assert deliveries.list_reports("ana", job.job_id) == []


def test_erasing_while_calls_are_recorded_leaves_none_of_them(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int, engine: Engine
) -> None:
    jobs = [a_followed_job() for _ in range(3)]
    ended = [cancellation(job) for job in jobs]
    records.commit(0, epoch, [*map(submission, jobs), *ended])
    pending = deliveries.list_pending(0)

    def record_until_erased(delivery: WebhookDelivery) -> None:
        while deliveries.record(delivery, an_attempt(), FENCE):
            pass

    with ThreadPoolExecutor(len(pending)) as threads:
        recorded = threads.map(record_until_erased, pending)
        for change in ended:
            records.commit(0, epoch, [erasure(change.job)])
        list(recorded)

    assert all(_tables_that_name(engine, job) == {"job_events", "object_deletions"} for job in jobs)


# --- objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [finish, failure, cancellation])
def test_the_objects_of_a_job_that_ended_long_ago_are_deleted_at_once(
    records: JobRepository, deletions: DeletionRepository, epoch: int, end
) -> None:
    job = a_job()
    ended = end(start(job).job)
    records.commit(0, epoch, [submission(job), start(job), ended])

    late = erasure(ended.job)
    late = replace(late, event=replace(late.event, at=later(10**6)))
    records.commit(0, epoch, [late])

    assert _prefixes(deletions, later(10**9)) == [job_prefix("ana", job.job_id)]
    assert _prefixes(deletions, later(10**6)) == [job_prefix("ana", job.job_id)]


@pytest.mark.parametrize("end", [failure, cancellation])
def test_the_objects_of_a_job_that_has_just_ended_are_deleted_once_more_later(
    records: JobRepository, deletions: DeletionRepository, epoch: int, end
) -> None:
    """Its replica may still be writing."""
    job = a_job()
    ended = end(start(job).job)
    records.commit(0, epoch, [submission(job), start(job), ended])

    records.commit(0, epoch, [erasure(ended.job)])

    assert _prefixes(deletions, ERASED_AT) == [job_prefix("ana", job.job_id)]
    assert _prefixes(deletions, ERASED_AT + STRAGGLER_PAUSE) == [job_prefix("ana", job.job_id)] * 2


@pytest.mark.parametrize("is_running", [False, True])
def test_the_objects_of_an_unfinished_job_are_deleted_once_more_later(
    records: JobRepository, deletions: DeletionRepository, epoch: int, is_running: bool
) -> None:
    job = a_job()
    changes = [submission(job), start(job)] if is_running else [submission(job)]
    records.commit(0, epoch, changes)
    prefix = job_prefix("ana", job.job_id)

    records.commit(0, epoch, [erasure(changes[-1].job)])

    late = ERASED_AT + STRAGGLER_PAUSE
    assert _prefixes(deletions, ERASED_AT) == [prefix]
    assert _prefixes(deletions, late - timedelta(microseconds=1)) == [prefix]
    assert _prefixes(deletions, late) == [prefix, prefix]


def test_the_prefix_of_a_job_begins_the_keys_of_its_objects_and_of_no_others() -> None:
    prefix = job_prefix("ana", "1")

    assert original_key("ana", "1", "image/jpeg").startswith(prefix)
    assert avatar_key("ana", "1", 2, ImageFormat.PNG).startswith(prefix)
    assert not original_key("ana", "12", "image/jpeg").startswith(prefix)


def test_an_erasure_that_fails_has_no_objects_deleted(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job)])

    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [erasure(job), submission(job)])

    assert deletions.list_due(0, later(10**6), 10) == []
    assert records.find_job("ana", job.job_id) is not None


def test_deletions_come_when_they_are_due_and_the_longest_due_first(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    jobs = [a_job(), a_job(), a_job()]
    records.commit(0, epoch, [submission(job) for job in jobs])
    times = [later(30), later(20), later(40)]
    for job, at in zip(jobs, times, strict=True):
        _erase_at(records, epoch, job, at)
    first, second, third = (job_prefix("ana", jobs[index].job_id) for index in (1, 0, 2))

    assert _prefixes(deletions, later(19)) == []
    assert _prefixes(deletions, later(20)) == [first]
    assert _prefixes(deletions, later(30)) == [first, second]
    assert [each.prefix for each in deletions.list_due(0, later(40), 2)] == [first, second]
    assert _prefixes(deletions, later(40)) == [first, second, third]


def test_deletions_are_of_their_shard(records: JobRepository, deletions: DeletionRepository) -> None:
    job = a_job()
    epoch = records.claim_shard(1)
    records.commit(1, epoch, [submission(job)])

    records.commit(1, epoch, [erasure(job)])

    assert deletions.list_due(0, later(10**6), 10) == []
    assert len(deletions.list_due(1, later(10**6), 10)) == 2


def test_a_deletion_that_is_done_does_not_come_again(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job), erasure(job)])
    [now] = deletions.list_due(0, ERASED_AT, 10)

    deletions.complete([now.deletion_id], FENCE)
    deletions.complete([now.deletion_id], FENCE)

    assert deletions.list_due(0, ERASED_AT, 10) == []
    [straggler] = deletions.list_due(0, ERASED_AT + STRAGGLER_PAUSE, 10)
    assert straggler.prefix == now.prefix


def test_a_deletions_number_is_not_used_again(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    first, second = a_job(), a_job()
    records.commit(0, epoch, [submission(first), erasure(first)])
    numbers = {each.deletion_id for each in deletions.list_due(0, later(10**6), 10)}
    deletions.complete(numbers, FENCE)

    records.commit(0, epoch, [submission(second), erasure(second)])

    assert numbers.isdisjoint(each.deletion_id for each in deletions.list_due(0, later(10**6), 10))


# --- customers ----------------------------------------------------------------------------------------


def test_a_customer_stays_when_the_last_job_is_erased(records: JobRepository, epoch: int) -> None:
    job = a_job("ana")

    records.commit(0, epoch, [submission(job), erasure(job)])

    assert records.find_customer("ana") == CustomerSummary(
        customer_id="ana", created_at=NOON, jobs=0, latest=None
    )


def test_an_erased_job_is_counted_no_more(records: JobRepository, epoch: int) -> None:
    jobs, other = [a_job("ana") for _ in range(4)], a_job("ben")
    records.commit(0, epoch, [*map(submission, jobs), submission(other)])

    # The last one comes and goes in one group.
    records.commit(
        0, epoch, [erasure(jobs[0]), erasure(jobs[1]), submission(last := a_job("ana")), erasure(last)]
    )

    counts = {customer.customer_id: customer.jobs for customer in records.list_customers(None, 10)}
    assert counts == {"ana": 2, "ben": 1}


def test_a_customer_without_jobs_can_be_forgotten(records: JobRepository, epoch: int) -> None:
    job, other = a_job("ana"), a_job("ben")
    records.commit(0, epoch, [submission(job), submission(other), erasure(job)])

    assert records.forget_customer(0, epoch, "ana")

    assert [customer.customer_id for customer in records.list_customers(None, 10)] == ["ben"]
    assert not records.forget_customer(0, epoch, "ana")


def test_a_customer_with_jobs_is_not_forgotten(records: JobRepository, epoch: int) -> None:
    job = a_job("ana")
    records.commit(0, epoch, [submission(job, a_key())])

    assert not records.forget_customer(0, epoch, "ana")

    assert records.find_customer("ana") is not None
    assert records.find_key("ana", "upload-1", NOON) is not None


def test_a_forgotten_customer_may_come_again(records: JobRepository, epoch: int) -> None:
    job = a_job("ana")
    records.commit(0, epoch, [submission(job), erasure(job)])
    records.forget_customer(0, epoch, "ana")

    records.commit(0, epoch, [submission(a_job("ana", created_at=later(60)))])

    customer = records.find_customer("ana")
    assert customer is not None
    assert customer.created_at == later(60)


def test_an_overtaken_tracker_forgets_nobody(records: JobRepository, epoch: int) -> None:
    job = a_job("ana")
    records.commit(0, epoch, [submission(job), erasure(job)])
    records.claim_shard(0)

    with pytest.raises(StaleEpoch):
        records.forget_customer(0, epoch, "ana")

    assert records.find_customer("ana") is not None


def an_attempt() -> DeliveryAttempt:
    return DeliveryAttempt(at=later(5), seconds=0.25, status=500, answer="not now")


def test_a_deletion_that_is_postponed_is_met_again_later(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    kept, gone = a_job(), a_job()
    ended = [cancellation(job) for job in (kept, gone)]
    records.commit(0, epoch, [submission(kept), submission(gone), *ended])
    records.commit(0, epoch, [erasure(change.job) for change in ended])
    due = deletions.list_due(0, ERASED_AT, 10)
    [of_kept] = [each.deletion_id for each in due if each.prefix == job_prefix("ana", kept.job_id)]

    deletions.postpone([of_kept], ERASED_AT + timedelta(minutes=1), FENCE)

    assert _prefixes(deletions, ERASED_AT) == [job_prefix("ana", gone.job_id)]
    assert len(_prefixes(deletions, ERASED_AT + timedelta(minutes=1))) == 2


def _prefixes(deletions: DeletionRepository, now: datetime) -> list[str]:
    return [deletion.prefix for deletion in deletions.list_due(0, now, 100)]


def _erase_at(records: JobRepository, epoch: int, job: ProfilePhotoJob, at: datetime) -> None:
    cancelled = cancellation(job)
    change = erasure(cancelled.job)
    records.commit(0, epoch, [cancelled, replace(change, event=replace(change.event, at=at))])


def _tables_that_name(engine: Engine, job: ProfilePhotoJob) -> set[str]:
    """The tables that hold the job's id anywhere in any row."""
    with engine.connect() as connection:
        return {
            table.name
            for table in metadata.sorted_tables
            if any(job.job_id in str(tuple(row)) for row in connection.execute(select(table)))
        }


def test_an_overtaken_tracker_neither_forgets_a_deletion_nor_puts_it_off(
    records: JobRepository, deletions: DeletionRepository, epoch: int
) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job), erasure(job)])
    [deletion] = deletions.list_due(0, ERASED_AT, 10)
    records.claim_shard(0)
    with pytest.raises(StaleEpoch):
        deletions.complete([deletion.deletion_id], FENCE)
    with pytest.raises(StaleEpoch):
        deletions.postpone([deletion.deletion_id], later(10**6), FENCE)

    assert deletions.list_due(0, ERASED_AT, 10) == [deletion]
