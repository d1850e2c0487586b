"""Spreading the customers over another number of shards, while nothing runs."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from sqlalchemy import Connection, Engine, func, insert, select

from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import DatabaseInUse
from avatarforge.domain.leases import LEASE
from avatarforge.persistence.database import begin_read, begin_write, read_clock
from avatarforge.persistence.shards import MOVING
from avatarforge.persistence.tables import (
    customers,
    job_events,
    object_deletions,
    tracker_clusters,
    tracker_shards,
    webhook_deliveries,
)
from avatarforge.storage.keys import owner_of

_MOVED_AT_ONCE = 200
"""Customers in one transaction: with all of their events it has to end within the time limit of a read."""


def reshard(engine: Engine, shards: int) -> int:
    """Spread customers with their events, deliveries and deletions over so many shards; returns how many
    customers there are. Cut short, it is called again: until then no tracker starts.

    Numbers of events stay, so that clients resume where they are. Every shard gets a higher epoch than there
    was, so that a tracker that should still run can write nothing. Raises `DatabaseInUse` where a cluster was
    seen in the last seconds, and `DatabaseUnavailable`.
    """
    with begin_write(engine) as connection:
        _begin(connection, shards)
    moved = 0
    for page in _pages(engine):
        moved += len(page)
        with begin_write(engine) as connection:
            _move_customers(connection, page, shards)
    with begin_write(engine) as connection:
        _move_deletions(connection, shards)
        connection.execute(tracker_shards.delete().where(tracker_shards.c.shard >= shards))
        connection.execute(tracker_shards.update().where(tracker_shards.c.shard == 0).values(shards=shards))
    return moved


def _begin(connection: Connection, shards: int) -> None:
    """Stop whoever might write, and let nobody begin."""
    living = select(tracker_clusters.c.cluster_id).where(
        tracker_clusters.c.seen_at > read_clock(connection) - LEASE
    )
    if (cluster_id := connection.scalar(living)) is not None:
        raise DatabaseInUse(cluster_id, int(LEASE.total_seconds()))
    rows = tracker_shards.c
    known = connection.scalars(select(rows.shard).order_by(rows.shard).with_for_update()).all()
    epoch, pruned = connection.execute(select(func.max(rows.epoch), func.max(rows.pruned_seq))).one()
    # What one shard's log has lost, the others' customers may miss, too.
    values = {"epoch": (epoch or 0) + 1, "pruned_seq": pruned or 0, "cluster_id": None}
    connection.execute(tracker_shards.update().values(values))
    if missing := [{"shard": shard, **values} for shard in range(shards) if shard not in known]:
        connection.execute(insert(tracker_shards), missing)
    connection.execute(tracker_shards.update().where(rows.shard == 0).values(shards=MOVING))


def _pages(engine: Engine) -> Iterator[Sequence[str]]:
    """All customers who are on record or in the log: of erased ones only events are left."""
    after = ""
    while True:
        with begin_read(engine) as connection:
            found: set[str] = set()
            for column in (customers.c.customer_id, job_events.c.customer_id):
                page = select(column).distinct().where(column > after).order_by(column).limit(_MOVED_AT_ONCE)
                found.update(connection.scalars(page))
        if not found:
            return
        # Beyond this one the page of either table may have ended.
        ids = sorted(found)[:_MOVED_AT_ONCE]
        yield ids
        after = ids[-1]


def _move_customers(connection: Connection, customer_ids: Sequence[str], shards: int) -> None:
    def shard(customer_id: str) -> int:
        return shard_of(customer_id, shards)

    for number, group in groupby(sorted(customer_ids, key=shard), shard):
        ids = list(group)
        for table in (customers, job_events, webhook_deliveries):
            theirs = table.c.customer_id.in_(ids) & (table.c.shard != number)
            connection.execute(table.update().where(theirs).values(shard=number))


def _move_deletions(connection: Connection, shards: int) -> None:
    deletions = object_deletions.c
    for deletion_id, prefix in connection.execute(select(deletions.deletion_id, deletions.prefix)).all():
        if (owner := owner_of(prefix)) is not None:
            moved = object_deletions.update().where(deletions.deletion_id == deletion_id)
            connection.execute(moved.values(shard=shard_of(owner[0], shards)))
