"""What goes when it is past its age, and what the log's bounds then tell, over SQLite and MariaDB alike."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine, select

from avatarforge.domain.changes import LIFETIME, LogBounds
from avatarforge.domain.errors import StaleEpoch
from avatarforge.persistence import JobRepository
from avatarforge.persistence.group import keep_keys
from avatarforge.persistence.tables import idempotency_keys
from tests.jobs import a_job, a_key, finish, later, start, submission


def log_of(records: JobRepository, epoch: int, seconds: Sequence[float], shard: int = 0) -> list[int]:
    """Commit a submission for each of these times; returns the events' numbers."""
    jobs = [a_job(f"customer-{shard}", created_at=later(second)) for second in seconds]
    return records.commit(shard, epoch, [submission(job) for job in jobs])


def left_in(records: JobRepository, shard: int = 0) -> list[int]:
    return [entry.event.seq for entry in records.list_shard_events(shard, 0, 100)]


# --- bounds -------------------------------------------------------------------------------------------


def test_an_empty_log_has_no_bounds(records: JobRepository) -> None:
    assert records.get_log_bounds(0) == LogBounds(pruned_seq=0, latest_seq=0)
    records.claim_shard(0)
    assert records.get_log_bounds(0) == LogBounds(pruned_seq=0, latest_seq=0)


def test_bounds_are_of_their_shard(records: JobRepository, epoch: int) -> None:
    first, second = log_of(records, epoch, [1, 2])
    [other] = log_of(records, records.claim_shard(1), [1], shard=1)

    records.prune(0, epoch, later(2), 10)

    assert records.get_log_bounds(0) == LogBounds(pruned_seq=first, latest_seq=second)
    assert records.get_log_bounds(1) == LogBounds(pruned_seq=0, latest_seq=other)
    assert left_in(records, shard=1) == [other]


def test_claiming_a_shard_keeps_its_bounds(records: JobRepository, epoch: int) -> None:
    log_of(records, epoch, [1, 2])
    records.prune(0, epoch, later(2), 10)
    before = records.get_log_bounds(0)

    records.claim_shard(0)

    assert records.get_log_bounds(0) == before


def test_a_log_that_was_pruned_to_its_end_keeps_its_last_number_and_counts_on(
    records: JobRepository, epoch: int
) -> None:
    *_, last = log_of(records, epoch, [1, 2, 3])

    assert records.prune(0, epoch, later(9), 10) == 3

    assert records.get_log_bounds(0) == LogBounds(pruned_seq=last, latest_seq=last)
    assert records.get_latest_seq(0) == last
    assert log_of(records, epoch, [4]) > [last]


# --- pruning ------------------------------------------------------------------------------------------


def test_events_of_that_age_go_and_younger_ones_stay(records: JobRepository, epoch: int) -> None:
    seqs = log_of(records, epoch, [1, 2, 3, 4])

    assert records.prune(0, epoch, later(3), 10) == 2

    assert left_in(records) == seqs[2:]
    assert records.get_log_bounds(0).pruned_seq == seqs[1]


def test_pruning_stops_at_the_first_younger_event(records: JobRepository, epoch: int) -> None:
    seqs = log_of(records, epoch, [1, 2, 9, 3])

    assert records.prune(0, epoch, later(5), 10) == 2

    assert left_in(records) == seqs[2:]


def test_pruning_goes_on_where_its_limit_stopped_it(records: JobRepository, epoch: int) -> None:
    seqs = log_of(records, epoch, [1, 2, 3, 4, 9])

    pruned = [records.prune(0, epoch, later(5), 3) for _ in range(3)]

    assert pruned == [3, 1, 0]
    assert left_in(records) == seqs[4:]
    assert records.get_log_bounds(0).pruned_seq == seqs[3]


def test_jobs_outlive_their_pruned_events(records: JobRepository, epoch: int) -> None:
    job = a_job()
    [seq] = records.commit(0, epoch, [submission(job)])
    records.prune(0, epoch, later(1), 10)

    assert records.list_unfinished(0) == [replace(job, seq=seq)]
    started = start(job)
    assert records.commit(0, epoch, [started, finish(started.job)])


def test_an_overtaken_tracker_prunes_nothing(records: JobRepository, epoch: int) -> None:
    seqs = log_of(records, epoch, [1, 2])
    records.claim_shard(0)

    with pytest.raises(StaleEpoch):
        records.prune(0, epoch, later(9), 10)

    assert left_in(records) == seqs


# --- idempotency keys ---------------------------------------------------------------------------------


def test_keys_that_have_expired_by_then_go_the_oldest_first(
    records: JobRepository, epoch: int, engine: Engine
) -> None:
    for second in (3, 1, 4, 2):
        job = a_job(created_at=later(second))
        records.commit(0, epoch, [submission(job, a_key(f"of second {second}"))])
    before = later(4) + LIFETIME

    left = [_keys(engine)]
    for _ in range(3):
        records.prune(0, epoch, before, 2)
        left.append(_keys(engine))

    assert left[1] == {"of second 3", "of second 4"}
    assert left[2] == left[3] == {"of second 4"}


def test_an_expired_key_takes_no_fresh_one_of_its_job_along(
    records: JobRepository, epoch: int, engine: Engine
) -> None:
    job = a_job(created_at=later(1))
    records.commit(0, epoch, [submission(job, a_key("upload"))])
    with engine.begin() as connection:
        keep_keys(connection, [("ana", job.job_id, later(9), a_key("command"))])

    records.prune(0, epoch, later(2) + LIFETIME, 10)

    assert _keys(engine) == {"command"}


def test_no_more_keys_go_at_once_than_were_asked_for(
    records: JobRepository, epoch: int, engine: Engine
) -> None:
    job = a_job(created_at=later(1))
    records.commit(0, epoch, [submission(job, a_key("upload"))])
    with engine.begin() as connection:
        keep_keys(connection, [("ana", job.job_id, later(2), a_key("command"))])

    records.prune(0, epoch, later(9) + LIFETIME, 1)

    assert _keys(engine) == {"command"}


def test_keys_of_other_shards_stay(records: JobRepository, epoch: int, engine: Engine) -> None:
    records.commit(0, epoch, [submission(a_job("ana"), a_key("ours"))])
    records.commit(1, records.claim_shard(1), [submission(a_job("ben"), a_key("theirs"))])

    records.prune(0, epoch, later(1) + LIFETIME, 10)

    assert _keys(engine) == {"theirs"}


def _keys(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(select(idempotency_keys.c.key)))
