"""Another number of shards: customers move with all that is theirs, and nothing is lost on the way."""

from collections.abc import Sequence

import pytest
from sqlalchemy import Engine, select

from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import DatabaseInUse, ShardCountChanged, StaleEpoch
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, reshard
from avatarforge.persistence.tables import tracker_shards
from tests.factories import NOON
from tests.jobs import a_detailed_job, erasure, finish, start, submission

CUSTOMERS = [f"customer-{number}" for number in range(30)]


def fill(records: JobRepository, shards: int) -> None:
    """A finished, an unfinished and an erased job for every customer."""
    epochs = [records.claim_shard(shard, shards) for shard in range(shards)]
    for customer_id in CUSTOMERS:
        shard = shard_of(customer_id, shards)
        done, open_, erased = (a_detailed_job(customer_id) for _ in range(3))
        started = start(done)
        changes = [
            submission(done),
            started,
            finish(started.job),
            submission(open_),
            submission(erased),
            erasure(erased),
        ]
        records.commit(shard, epochs[shard], changes)


def read_log(records: JobRepository, shards: Sequence[int]) -> list[tuple[int, str]]:
    events = [change.event for shard in shards for change in records.list_shard_events(shard, 0, 1000)]
    return sorted((event.seq, event.customer_id) for event in events)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5), (4, 3)])
def test_resharding_moves_all_that_customers_have(
    records: JobRepository,
    engine: Engine,
    deliveries: DeliveryRepository,
    deletions: DeletionRepository,
    before: int,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reshard, "_MOVED_AT_ONCE", 7)
    fill(records, before)
    log = read_log(records, range(before))
    jobs = {job.job_id for shard in range(before) for job in records.list_unfinished(shard)}
    due = sum(len(deletions.list_due(shard, NOON.replace(year=2100), 1000)) for shard in range(before))
    pending = sum(len(deliveries.list_pending(shard)) for shard in range(before))

    assert reshard.reshard(engine, after) == len(CUSTOMERS)

    with pytest.raises(ShardCountChanged):
        records.claim_shard(0, before)
    epochs = [records.claim_shard(shard, after) for shard in range(after)]
    assert read_log(records, range(after)) == log
    for shard in range(after):
        unfinished = records.list_unfinished(shard)
        assert {shard_of(job.customer_id, after) for job in unfinished} <= {shard}
        jobs -= {job.job_id for job in unfinished}
        records.commit(shard, epochs[shard], [start(job) for job in unfinished])
    assert jobs == set()
    assert due == sum(len(deletions.list_due(shard, NOON.replace(year=2100), 1000)) for shard in range(after))
    assert pending == sum(len(deliveries.list_pending(shard)) for shard in range(after))
    assert {summary.jobs for summary in records.list_customers(None, 100)} == {2}


def test_a_move_that_was_cut_short_lets_nobody_start_and_is_finished_by_the_next(
    records: JobRepository, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(records, 2)
    log = read_log(records, range(2))
    monkeypatch.setattr(reshard, "_MOVED_AT_ONCE", 10)
    with monkeypatch.context() as patched:
        patched.setattr(reshard, "_move_deletions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reshard.reshard(engine, 3)
    for shards in (2, 3):
        with pytest.raises(ShardCountChanged, match="cut short"):
            records.claim_shard(0, shards)

    reshard.reshard(engine, 3)

    assert read_log(records, range(3)) == log
    with engine.connect() as connection:
        assert set(connection.scalars(select(tracker_shards.c.shard))) == {0, 1, 2}


def test_a_tracker_that_still_runs_can_write_nothing(records: JobRepository, engine: Engine) -> None:
    epoch = records.claim_shard(0, 1)
    reshard.reshard(engine, 2)

    with pytest.raises(StaleEpoch):
        records.commit(0, epoch, [submission(a_detailed_job())])


def test_resharding_under_a_cluster_that_runs_is_refused(records: JobRepository, engine: Engine) -> None:
    records.claim_shard(0, 1, "blue")

    with pytest.raises(DatabaseInUse, match="blue"):
        reshard.reshard(engine, 2)

    assert records.claim_shard(0, 1, "blue") == 2
