"""The right to write for a shard: claims, leases and the number of shards, in the caller's transaction."""

from datetime import timedelta

from sqlalchemy import Connection, func, select

from avatarforge.domain.errors import ShardCountChanged, ShardLeased
from avatarforge.domain.leases import KnownCluster, find_rival
from avatarforge.persistence.database import build_upserts, read_clock
from avatarforge.persistence.tables import customers, profile_photo_jobs, tracker_clusters, tracker_shards

MOVING = 0
"""On record in place of the number of shards while customers are moved."""
MAX_CLUSTER_AGE = timedelta(days=1)
"""A cluster that was not seen for so long is forgotten."""


def claim(connection: Connection, shard: int, shards: int | None, cluster_id: str) -> int:
    """Raise the shard's epoch and return it. See `JobRepository.claim_shard`."""
    rows = tracker_shards.c
    connection.execute(_ADDED[connection.dialect.name], {"shard": shard, "epoch": 0})
    # In this order wherever several are locked. The first one's row has the number of shards.
    held = select(tracker_shards).where(rows.shard.in_({0, shard})).order_by(rows.shard).with_for_update()
    found = {row["shard"]: row for row in connection.execute(held).mappings()}
    if shards is not None and 0 in found:
        check_count(shards, found[0]["shards"])
    if cluster_id and (rival := _find_rival(connection, cluster_id, found[shard]["cluster_id"])) is not None:
        raise ShardLeased(
            f"Shard {shard} is served by another cluster, {rival}: this one stays idle meanwhile."
        )
    epoch = int(found[shard]["epoch"]) + 1
    if found[shard]["counted_epoch"] != epoch - 1:
        _count_photos(connection, shard)
    values = {"epoch": epoch, "counted_epoch": epoch, "cluster_id": cluster_id or None}
    if shard == 0 and shards is not None:
        values["shards"] = shards
    connection.execute(tracker_shards.update().where(rows.shard == shard).values(values))
    return epoch


def check_count(shards: int, recorded: int | None) -> None:
    """Raise `ShardCountChanged`, with what to do, unless so many shards are on record, or none yet."""
    run = f"stop every process and run `avatarforge db reshard {shards}`"
    if recorded == MOVING:
        raise ShardCountChanged(f"Customers are being moved between shards. If that was cut short, {run}.")
    if recorded not in (None, shards):
        raise ShardCountChanged(
            f"tracker.shards is {shards}, but this database's customers are spread over {recorded}. "
            f"Set it to {recorded}, or {run}."
        )


def keep_lease(connection: Connection, shard: int, cluster_id: str) -> str | None:
    """Tell that the cluster lives. Returns the younger cluster that the shard was handed over to, if any."""
    announce(connection, cluster_id)
    rival = _find_rival(connection, cluster_id, None)
    if rival is not None:
        released = tracker_shards.update().where(tracker_shards.c.shard == shard)
        connection.execute(released.values(cluster_id=None))
    return rival


def announce(connection: Connection, cluster_id: str) -> None:
    """Tell that the cluster lives, by the database's clock."""
    now, clusters = read_clock(connection), tracker_clusters.c
    connection.execute(tracker_clusters.delete().where(clusters.seen_at < now - MAX_CLUSTER_AGE))
    seen = {"cluster_id": cluster_id, "first_seen_at": now, "seen_at": now}
    connection.execute(_SEEN[connection.dialect.name], seen)


_SEEN = build_upserts(tracker_clusters, lambda new: {"seen_at": new.seen_at})
# Of a row that is there MariaDB takes the exclusive lock at once: two that share one wait for each other.
_ADDED = build_upserts(tracker_shards, lambda new: {"epoch": tracker_shards.c.epoch})


def _find_rival(connection: Connection, cluster_id: str, holder: str | None) -> str | None:
    known = [KnownCluster(**row) for row in connection.execute(select(tracker_clusters)).mappings()]
    return find_rival(cluster_id, holder, known, read_clock(connection))


_COUNTED_AT_ONCE = 1000
"""Customers whose photos one statement counts: it has to be answered within the time limit of a read."""


def _count_photos(connection: Connection, shard: int) -> None:
    """Put the numbers of photos of the shard's customers right."""
    jobs, ids = profile_photo_jobs.c, customers.c.customer_id
    count = select(func.count()).where(jobs.customer_id == ids).scalar_subquery()
    of_shard = select(ids).where(customers.c.shard == shard).order_by(ids).limit(_COUNTED_AT_ONCE)
    page = connection.scalars(of_shard).all()
    while page:
        among = ids.between(page[0], page[-1]) & (customers.c.shard == shard)
        connection.execute(customers.update().where(among).values(photo_count=count))
        page = connection.scalars(of_shard.where(ids > page[-1])).all()
