"""Removing what is past its age, inside the caller's transaction."""

from datetime import datetime
from itertools import takewhile

from sqlalchemy import Connection, select, update

from avatarforge.domain.idempotency import LIFETIME
from avatarforge.persistence.tables import customers, idempotency_keys, job_events, tracker_shards


def prune_log(connection: Connection, shard: int, before: datetime, limit: int) -> int:
    """Remove the shard's events from before that time, up to the first younger one and `limit` in all.

    The shard's row tells how far it went. Returns how many went.
    """
    events = job_events.c
    oldest = select(events.seq, events.at).where(events.shard == shard).order_by(events.seq).limit(limit)
    old = list(takewhile(lambda event: event.at < before, connection.execute(oldest)))
    if old:
        last = old[-1].seq
        connection.execute(job_events.delete().where(events.shard == shard, events.seq <= last))
        connection.execute(
            update(tracker_shards).where(tracker_shards.c.shard == shard).values(pruned_seq=last)
        )
    return len(old)


def prune_keys(connection: Connection, shard: int, now: datetime, limit: int) -> None:
    """Remove at most `limit` idempotency keys of the shard's customers that were expired at that time."""
    keys = idempotency_keys.c
    expired = (
        select(keys.job_id)
        .join(customers, customers.c.customer_id == keys.customer_id)
        .where(customers.c.shard == shard, keys.created_at < now - LIFETIME)
        .order_by(keys.created_at)
        .limit(limit)
    )
    job_ids = connection.scalars(expired).all()
    if job_ids:
        connection.execute(idempotency_keys.delete().where(keys.job_id.in_(job_ids)))
