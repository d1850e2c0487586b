"""What `JobRepository` promises, over SQLite and MariaDB alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.customers import CustomerSummary
from avatarforge.domain.errors import JobNotFound, StaleEpoch
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob, Vary
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence import JobRepository, shards
from avatarforge.persistence.group import write_group
from avatarforge.persistence.tables import customers, job_events, metadata, tracker_shards
from tests.factories import NOON, a_variant, an_outcome
from tests.jobs import (
    a_detailed_job,
    a_job,
    cancellation,
    failure,
    finish,
    image,
    keeping,
    later,
    numbered,
    requeue,
    start,
    submission,
)
from tests.waiting import wait_until


def submitted(records: JobRepository, *jobs: ProfilePhotoJob, shard: int = 0) -> list[ProfilePhotoJob]:
    """The jobs as they are after their submissions were committed."""
    changes = [submission(job) for job in jobs]
    return numbered(changes, records.commit(shard, records.claim_shard(shard), changes))


# --- round trips --------------------------------------------------------------------------------------


def test_every_field_of_a_submitted_job_comes_back(records: JobRepository, epoch: int) -> None:
    job = a_detailed_job()

    [seq] = records.commit(0, epoch, [submission(job)])

    assert records.find_job("ana", job.job_id) == replace(job, seq=seq)


def test_every_field_of_a_finished_job_comes_back(records: JobRepository, epoch: int) -> None:
    job = a_detailed_job()
    records.commit(0, epoch, [submission(job)])
    lost = requeue(start(job).job)
    done = finish(start(lost.job).job)

    [seq] = records.commit(0, epoch, [done])

    found = records.find_job("ana", job.job_id)
    assert found == replace(done.job, seq=seq)
    assert (found.attempt, found.worker_losses, found.outcome) == (2, 1, done.job.outcome)


def test_the_images_of_a_job_come_back_as_they_are_published_and_the_one_that_is_kept(
    records: JobRepository, epoch: int
) -> None:
    changes = [submission(a_job(parameters=GenerationParameters(seed=7, variants=3, vary=Vary.STYLE)))]
    changes.append(start(changes[-1].job))
    changes.append(image(changes[-1].job, 1))
    changes.append(keeping(changes[-1].job, 1))
    [*_, seq] = records.commit(0, epoch, changes)
    assert records.find_job("ana", changes[0].job.job_id) == replace(changes[-1].job, seq=seq)

    later_changes = [image(changes[-1].job, 2)]
    running = later_changes[-1].job
    last = a_variant(running, 0)
    done = running.complete(an_outcome(avatar=last.stored), later(3), last)
    later_changes.append(JobChange(job=done, event=done.event(EventKind.DONE, later(3))))
    later_changes.append(keeping(done, 2))
    changes += later_changes
    [*_, seq] = records.commit(0, epoch, later_changes)
    assert records.find_job("ana", done.job_id) == replace(changes[-1].job, seq=seq)

    log = records.list_customer_events("ana", done.job_id, 0, 10)
    assert [entry.event.kind for entry in log] == [change.event.kind for change in changes]
    assert [entry.job and (entry.job.images, entry.job.kept) for entry in log] == [
        (change.job.images, change.job.kept) for change in changes
    ]


def test_every_field_of_a_failed_job_comes_back(records: JobRepository, epoch: int) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job)])
    failed = failure(start(job).job)

    [seq] = records.commit(0, epoch, [failed])

    assert records.find_job("ana", job.job_id) == replace(failed.job, seq=seq)


def test_times_come_back_aware_and_to_the_microsecond(records: JobRepository, epoch: int) -> None:
    elsewhere = datetime.fromisoformat("2026-10-25T02:30:00.999999+02:00")
    job = a_job(created_at=elsewhere)

    records.commit(0, epoch, [submission(job)])

    found = records.find_job("ana", job.job_id)
    assert found is not None
    assert found.created_at == elsewhere
    assert found.created_at.isoformat() == "2026-10-25T00:30:00.999999+00:00"


def test_a_naive_time_is_refused_and_nothing_is_kept(records: JobRepository, epoch: int) -> None:
    job = a_job(created_at=NOON.replace(tzinfo=None))

    with pytest.raises(StatementError, match="no time zone"):
        records.commit(0, epoch, [submission(job)])

    assert records.get_latest_seq(0) == 0


# --- commits ------------------------------------------------------------------------------------------


def test_seqs_rise_with_the_order_of_the_changes(records: JobRepository, epoch: int) -> None:
    changes = [submission(a_job(f"customer-{index % 7}")) for index in reversed(range(300))]

    seqs = records.commit(0, epoch, changes)

    assert seqs == sorted(set(seqs))
    assert [entry.event.job_id for entry in records.list_shard_events(0, 0, 1000)] == [
        change.job.job_id for change in changes
    ]


def test_seqs_rise_from_commit_to_commit(records: JobRepository, epoch: int) -> None:
    first = records.commit(0, epoch, [submission(a_job()), submission(a_job())])
    second = records.commit(0, epoch, [submission(a_job())])

    assert max(first) < second[0] == records.get_latest_seq(0)


def test_several_changes_of_a_job_in_one_commit_keep_each_event_and_the_last_value(
    records: JobRepository, epoch: int
) -> None:
    new = submission(a_job())
    started = start(new.job)
    done = finish(started.job)

    seqs = records.commit(0, epoch, [new, started, done])

    assert records.find_job("ana", new.job.job_id) == replace(done.job, seq=seqs[2])
    assert [entry.job for entry in records.list_shard_events(0, 0, 10)] == numbered(
        [new, started, done], seqs
    )


def test_a_job_has_one_terminal_event(records: JobRepository, epoch: int, engine: Engine) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job), finish(start(job).job)])
    second = cancellation(job)
    again = replace(second, event=replace(second.event, revision=9))

    with pytest.raises(IntegrityError, match="terminal_job_id"):
        records.commit(0, epoch, [again])

    with engine.connect() as connection:
        terminal = connection.scalars(select(job_events.c.terminal_job_id)).all()
    assert terminal == [None, job.job_id]


def test_two_jobs_may_each_end(records: JobRepository, epoch: int) -> None:
    one, two = a_job(), a_job()
    records.commit(0, epoch, [submission(one), submission(two)])

    records.commit(0, epoch, [cancellation(one), cancellation(two)])

    assert records.list_unfinished(0) == []


def test_a_repeated_revision_is_refused(records: JobRepository, epoch: int) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job), start(job)])

    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [start(job)])


def test_one_bad_change_leaves_nothing_of_its_group(
    records: JobRepository, epoch: int, engine: Engine
) -> None:
    known = a_job()
    records.commit(0, epoch, [submission(known)])
    before = _counts(engine)
    group = [submission(a_job("newcomer")), start(known), submission(known), submission(a_job("another"))]

    with pytest.raises(IntegrityError):
        records.commit(0, epoch, group)

    assert _counts(engine) == before
    assert records.find_job("ana", known.job_id) == replace(known, seq=1)


def test_a_change_of_a_job_that_was_never_submitted_is_refused(records: JobRepository, epoch: int) -> None:
    known, stranger = a_job(), a_job()
    records.commit(0, epoch, [submission(known)])

    with pytest.raises(JobNotFound, match=stranger.job_id):
        records.commit(0, epoch, [start(known), start(stranger)])

    assert records.get_latest_seq(0) == 1


def test_a_commit_of_nothing_checks_the_epoch(records: JobRepository, epoch: int) -> None:
    assert records.commit(0, epoch, []) == []

    with pytest.raises(StaleEpoch):
        records.commit(0, epoch + 1, [])


# --- epochs -------------------------------------------------------------------------------------------


def test_epochs_count_up_for_each_shard(records: JobRepository) -> None:
    assert [records.claim_shard(shard) for shard in (0, 0, 1, 0)] == [1, 2, 1, 3]


def test_an_overtaken_writer_is_refused_and_leaves_nothing(records: JobRepository, engine: Engine) -> None:
    old = records.claim_shard(0)
    new = records.claim_shard(0)
    before = _counts(engine)

    with pytest.raises(StaleEpoch) as refused:
        records.commit(0, old, [submission(a_job())])

    assert (refused.value.epoch, refused.value.current) == (old, new)
    assert _counts(engine) == before
    assert records.commit(0, new, [submission(a_job())])


def test_a_shard_that_nobody_claimed_refuses(records: JobRepository) -> None:
    with pytest.raises(StaleEpoch):
        records.commit(5, 1, [submission(a_job())])


def test_claims_at_the_same_time_get_different_epochs(records: JobRepository) -> None:
    with ThreadPoolExecutor(6) as threads:
        epochs = list(threads.map(records.claim_shard, [3] * 24))

    assert sorted(epochs) == list(range(1, 25))


def test_shards_commit_at_the_same_time(records: JobRepository) -> None:
    def fill(shard: int) -> list[int]:
        epoch = records.claim_shard(shard)
        return [
            seq
            for _ in range(10)
            for seq in records.commit(
                shard, epoch, [submission(a_job(f"customer-{shard}")) for _ in range(5)]
            )
        ]

    with ThreadPoolExecutor(4) as threads:
        seqs = list(threads.map(fill, range(4)))

    assert [
        [entry.event.seq for entry in records.list_shard_events(shard, 0, 100)] for shard in range(4)
    ] == seqs
    assert all(of_shard == sorted(of_shard) for of_shard in seqs)


# --- read-back ----------------------------------------------------------------------------------------


def test_a_commit_whose_answer_was_lost_is_read_back(records: JobRepository, epoch: int) -> None:
    new = submission(a_job())
    changes = [new, submission(a_job("ben")), start(new.job)]

    seqs = records.commit(0, epoch, changes)

    assert records.read_back(changes) == seqs
    assert records.read_back(changes[::-1]) == seqs[::-1]


def test_a_commit_that_never_came_about_is_read_back_as_none(records: JobRepository, epoch: int) -> None:
    known = submission(a_job())
    records.commit(0, epoch, [known])

    assert records.read_back([submission(a_job())]) is None
    assert records.read_back([start(known.job)]) is None


def test_another_writers_event_under_the_same_revision_is_not_ours(
    records: JobRepository, epoch: int
) -> None:
    job = a_job()
    records.commit(0, epoch, [submission(job), start(job)])

    assert records.read_back([cancellation(job)]) is None


async def test_reading_back_waits_for_a_transaction_that_still_runs(
    records: JobRepository, engine: Engine
) -> None:
    changes = [submission(a_job())]
    epoch = records.claim_shard(0)
    with ThreadPoolExecutor(1) as threads:
        with engine.connect() as lost:
            if engine.dialect.name == "sqlite":
                lost.execution_options(avatarforge_writes=True)
            seqs = write_group(lost, 0, epoch, changes)
            answer = threads.submit(records.read_back, changes)
            await wait_until(lambda: _somebody_waits(engine) or answer.done())
            assert not answer.done()
            lost.commit()

        assert answer.result(10) == seqs


# --- reads --------------------------------------------------------------------------------------------


def test_unfinished_jobs_come_oldest_first_and_of_their_shard_only(records: JobRepository) -> None:
    waiting, running, done, failed = submitted(records, *(a_job(f"customer-{n}") for n in range(4)))
    submitted(records, a_job("elsewhere"), shard=1)
    changes = [start(running), finish(start(done).job), failure(start(failed).job)]
    seqs = records.commit(0, records.claim_shard(0), changes)

    assert records.list_unfinished(0) == [waiting, replace(changes[0].job, seq=seqs[0])]


def test_unfinished_jobs_are_read_page_by_page(
    records: JobRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobRepository, "PAGE", 2)
    jobs = submitted(records, *(a_job() for _ in range(6)))
    records.commit(0, records.claim_shard(0), [start(job) for job in jobs[::2]])

    assert [job.job_id for job in records.list_unfinished(0)] == [job.job_id for job in jobs]


def test_a_job_of_another_customer_is_found_by_its_id_alone(records: JobRepository) -> None:
    [job] = submitted(records, a_job("ana"))

    assert records.find_job("ana", job.job_id) == job
    assert records.find_job("ben", job.job_id) is None
    assert records.find_job_by_id(job.job_id) == job
    assert records.find_job_by_id(a_job("ana").job_id) is None


def test_ids_are_found_by_their_beginning(records: JobRepository) -> None:
    first, second = submitted(records, a_job("ana"), a_job("ben"))
    ids = sorted([first.job_id, second.job_id])
    assert records.list_job_ids(first.job_id[:-1], 9) == [first.job_id]
    assert records.list_job_ids("", 9) == ids
    assert records.list_job_ids("", 1) == ids[:1]
    assert records.list_job_ids("%", 9) == []


def test_jobs_of_all_customers_are_found_by_the_beginning_of_their_ids(records: JobRepository) -> None:
    first, second = submitted(records, a_job("ana"), a_job("ben"))
    common = next(first.job_id[:n] for n in range(36, 0, -1) if second.job_id.startswith(first.job_id[:n]))
    jobs = sorted([first, second], key=lambda job: job.job_id)

    assert records.list_jobs_by_prefix(first.job_id, 9) == [first]
    assert records.list_jobs_by_prefix(second.job_id[:-1], 9) == [second]
    assert records.list_jobs_by_prefix(common, 9) == jobs
    assert records.list_jobs_by_prefix(common, 1) == jobs[:1]
    assert records.list_jobs_by_prefix("ffffffff", 9) == []


def test_a_customers_jobs_are_paged_newest_first(records: JobRepository) -> None:
    jobs = submitted(records, *(a_job("ana") for _ in range(5)))
    submitted(records, a_job("ben"))

    first = records.list_jobs("ana", None, 2)
    second = records.list_jobs("ana", first[-1].job_id, 2)
    third = records.list_jobs("ana", second[-1].job_id, 2)

    assert [first, second, third] == [jobs[:2:-1], jobs[2:0:-1], jobs[:1]]
    assert records.list_jobs("ana", third[-1].job_id, 2) == []


def test_customers_are_paged_by_id_with_their_latest_job(records: JobRepository) -> None:
    one, two, three = submitted(
        records, a_job("ben"), a_job("ana", created_at=later(5)), a_job("ana", created_at=later(8))
    )
    submitted(records, a_job("cleo"), shard=1)

    first = records.list_customers(None, 2)

    assert first == [
        CustomerSummary(customer_id="ana", created_at=later(5), jobs=2, latest=three),
        CustomerSummary(customer_id="ben", created_at=NOON, jobs=1, latest=one),
    ]
    assert [customer.customer_id for customer in records.list_customers("ben", 2)] == ["cleo"]
    assert records.list_customers("cleo", 2) == []
    assert two.customer_id == "ana"


def test_a_customer_comes_into_being_with_the_first_photo_and_stays(records: JobRepository) -> None:
    assert records.find_customer("ana") is None

    submitted(records, a_job("ana", created_at=later(1)))
    [latest] = submitted(records, a_job("ana", created_at=later(2)))

    assert records.find_customer("ana") == CustomerSummary(
        customer_id="ana", created_at=later(1), jobs=2, latest=latest
    )


@pytest.mark.parametrize("other", ["ana", "Ana ", "Ána", "Ana~", "Anä"])
def test_customer_ids_are_compared_byte_by_byte(records: JobRepository, other: str) -> None:
    [job] = submitted(records, a_job("Ana"))

    assert records.find_customer(other) is None
    assert records.list_jobs(other, None, 10) == []
    assert records.find_job(other, job.job_id) is None
    [theirs] = submitted(records, a_job(other))
    assert records.list_jobs("Ana", None, 10) == [job]
    assert records.list_jobs(other, None, 10) == [theirs]
    assert sorted(customer.customer_id for customer in records.list_customers(None, 10)) == sorted(
        ["Ana", other]
    )


def test_photos_that_an_earlier_version_accepted_are_counted_by_the_next_tracker(
    records: JobRepository, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_COUNTED_AT_ONCE", 2)
    others = ["dora", "emil", "fritz"]
    submitted(records, a_job("ana"), a_job("ana"), a_job("ben"), *map(a_job, others))
    submitted(records, a_job("cleo"), shard=1)
    with engine.begin() as connection:
        # What a tracker leaves behind that knows nothing of the numbers.
        connection.execute(tracker_shards.update().values(epoch=tracker_shards.c.epoch + 1))
        connection.execute(customers.update().values(photo_count=0))

    records.claim_shard(0)

    counts = {customer.customer_id: customer.jobs for customer in records.list_customers(None, 10)}
    assert counts == {"ana": 2, "ben": 1, "cleo": 0, **dict.fromkeys(others, 1)}


def test_numbers_of_photos_are_not_counted_again(records: JobRepository, engine: Engine) -> None:
    submitted(records, a_job("ana"))
    with engine.begin() as connection:
        connection.execute(customers.update().values(photo_count=7))

    records.claim_shard(0)

    assert [customer.jobs for customer in records.list_customers(None, 10)] == [7]


def test_customers_are_ordered_by_the_bytes_of_their_ids(records: JobRepository) -> None:
    ids = ["b", "B", "a.", "a~", "a-", "a_", "a", "0", "aB", "ab"]
    submitted(records, *(a_job(customer_id) for customer_id in ids))

    assert [customer.customer_id for customer in records.list_customers(None, 20)] == sorted(ids)


def test_events_after_a_number_come_with_the_job_as_it_was(records: JobRepository, epoch: int) -> None:
    new = submission(a_detailed_job())
    seqs = records.commit(0, epoch, [new])
    rest = [start(new.job), finish(start(new.job).job)]
    seqs += records.commit(0, epoch, rest)
    changes = [new, *rest]
    logged = [
        LoggedChange(event=change.with_seq(seq).event, job=change.with_seq(seq).job)
        for change, seq in zip(changes, seqs, strict=True)
    ]

    assert records.list_shard_events(0, 0, 10) == logged
    assert records.list_shard_events(0, seqs[0], 10) == logged[1:]
    assert records.list_shard_events(0, seqs[0], 1) == logged[1:2]
    assert records.list_shard_events(0, seqs[-1], 10) == []
    assert records.list_shard_events(1, 0, 10) == []


def test_a_customers_events_are_paged_by_number(records: JobRepository, epoch: int) -> None:
    one, two, other = a_job("ana"), a_job("ana"), a_job("ben")
    changes = [submission(one), submission(other), submission(two), start(one), start(other)]
    seqs = records.commit(0, epoch, changes)
    first, second, third = (changes[index].with_seq(seqs[index]).to_logged_change() for index in (0, 2, 3))

    assert records.list_customer_events("ana", None, 0, 2) == [first, second]
    assert records.list_customer_events("ana", None, second.event.seq, 2) == [third]
    assert records.list_customer_events("ana", None, third.event.seq, 2) == []
    assert records.list_customer_events("Ana", None, 0, 2) == []


def test_a_jobs_events_are_paged_by_number(records: JobRepository, epoch: int) -> None:
    job, other = a_job("ana"), a_job("ana")
    changes = [submission(job), submission(other), start(job), start(other), finish(start(job).job)]
    seqs = records.commit(0, epoch, changes)
    first, second, third = (changes[index].with_seq(seqs[index]).to_logged_change() for index in (0, 2, 4))

    assert records.list_customer_events("ana", job.job_id, 0, 2) == [first, second]
    assert records.list_customer_events("ana", job.job_id, first.event.seq, 10) == [second, third]
    assert records.list_customer_events("ana", job.job_id, third.event.seq, 10) == []
    assert records.list_customer_events("ben", job.job_id, 0, 10) == []


def test_the_latest_number_is_of_the_shard(records: JobRepository) -> None:
    [job] = submitted(records, a_job("ana"))
    [other] = submitted(records, a_job("ben"), shard=1)

    assert [records.get_latest_seq(shard) for shard in range(3)] == [job.seq, other.seq, 0]


def test_a_ping_is_answered(records: JobRepository) -> None:
    records.ping()


# --- the schema ---------------------------------------------------------------------------------------


def test_a_job_needs_its_customer(engine: Engine, records: JobRepository) -> None:
    submitted(records, a_job("ana"))

    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(customers.delete())


def test_kinds_and_states_fit_their_columns() -> None:
    longest = max(len(name) for name in [*EventKind, *ProcessingStatus])

    assert longest <= job_events.c.kind.type.length


def test_a_failed_statement_does_not_spoil_the_connection(records: JobRepository, engine: Engine) -> None:
    [job] = submitted(records, a_job())
    with pytest.raises(IntegrityError):
        records.commit(0, records.claim_shard(0), [submission(job)])

    with engine.begin() as connection:
        connection.execute(update(job_events).values(attempt=0))
    records.commit(0, records.claim_shard(0), [start(job)])


def _counts(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


def _somebody_waits(engine: Engine) -> bool:
    """Whether MariaDB runs the locking read just now; SQLite cannot tell."""
    if engine.dialect.name == "sqlite":
        return engine.pool.checkedout() == 2  # type: ignore[attr-defined]  # the lost one and the asking one
    with engine.connect() as connection:
        running = text(
            "SELECT count(*) FROM information_schema.processlist "
            "WHERE db = database() AND info LIKE 'SELECT job_events%LOCK IN SHARE MODE'"
        )
        return connection.execute(running).scalar_one() > 0


# --- the last good model ------------------------------------------------------------------------------


def test_the_last_good_model_is_kept_through_the_next_epoch(records: JobRepository, epoch: int) -> None:
    assert records.get_last_model(0) is None
    records.keep_model(0, epoch, "first")
    records.keep_model(0, epoch, "second")
    records.claim_shard(0)
    assert records.get_last_model(0) == "second"
    assert records.get_last_model(1) is None


def test_an_overtaken_tracker_keeps_no_model(records: JobRepository, epoch: int) -> None:
    records.claim_shard(0)
    with pytest.raises(StaleEpoch):
        records.keep_model(0, epoch, "stale")
    assert records.get_last_model(0) is None
