"""Which cluster's trackers write, where several are started on one database."""

from datetime import timedelta

import pytest

from avatarforge.domain.errors import ShardCountChanged, ShardLeased, StaleEpoch
from avatarforge.domain.leases import LEASE
from avatarforge.persistence import JobRepository, shards
from tests.factories import NOON


class Clock:
    """The database's."""

    def __init__(self) -> None:
        self.now = NOON

    def pass_lease(self) -> None:
        self.now += LEASE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shards, "read_clock", lambda _: clock.now)
    return clock


def test_within_a_cluster_a_successor_takes_over_at_once(records: JobRepository, clock: Clock) -> None:
    assert [records.claim_shard(0, 1, "blue") for _ in range(3)] == [1, 2, 3]


def test_a_younger_cluster_waits_until_the_elder_hands_over_and_keeps_the_shard_then(
    records: JobRepository, clock: Clock
) -> None:
    epoch = records.claim_shard(0, 1, "blue")
    assert records.keep_lease(0, epoch, "blue") is None
    clock.now += timedelta(seconds=1)
    with pytest.raises(ShardLeased, match="blue"):
        records.claim_shard(0, 1, "green")

    assert records.keep_lease(0, epoch, "blue") == "green"

    with pytest.raises(ShardLeased, match="green"):
        records.claim_shard(0, 1, "blue")
    assert records.claim_shard(0, 1, "green") == epoch + 1
    with pytest.raises(StaleEpoch):
        records.keep_lease(0, epoch, "blue")
    for _ in range(100):
        clock.now += timedelta(seconds=3)
        with pytest.raises(ShardLeased, match="green"):
            records.claim_shard(0, 1, "blue")
        assert records.keep_lease(0, epoch + 1, "green") is None


@pytest.mark.parametrize(("first", "second"), [("blue", "green"), ("green", "blue")])
def test_a_cluster_that_is_not_seen_for_ten_seconds_has_lost_its_shards(
    records: JobRepository, clock: Clock, first: str, second: str
) -> None:
    epoch = records.claim_shard(0, 1, first)
    clock.pass_lease()
    clock.pass_lease()

    assert records.claim_shard(0, 1, second) == epoch + 1


def test_an_elder_takes_over_again_when_the_younger_is_gone(records: JobRepository, clock: Clock) -> None:
    blue = records.claim_shard(0, 1, "blue")
    clock.now += timedelta(seconds=1)
    with pytest.raises(ShardLeased):
        records.claim_shard(0, 1, "green")
    records.keep_lease(0, blue, "blue")
    green = records.claim_shard(0, 1, "green")
    clock.pass_lease()

    assert records.claim_shard(0, 1, "blue") == green + 1


def test_shards_are_handed_over_one_by_one(records: JobRepository, clock: Clock) -> None:
    epochs = [records.claim_shard(shard, 2, "blue") for shard in range(2)]
    clock.now += timedelta(seconds=1)
    with pytest.raises(ShardLeased):
        records.claim_shard(1, 2, "green")
    assert records.keep_lease(1, epochs[1], "blue") == "green"

    assert records.claim_shard(1, 2, "green") == 2
    with pytest.raises(ShardLeased):
        records.claim_shard(0, 2, "green")


# --- the number of shards -----------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [0, 1])
def test_another_number_of_shards_is_refused(records: JobRepository, shard: int) -> None:
    epochs = [records.claim_shard(number, 2) for number in range(2)]

    with pytest.raises(ShardCountChanged, match="avatarforge db reshard 3"):
        records.claim_shard(shard, 3)

    assert records.claim_shard(shard, 2) == epochs[shard] + 1
