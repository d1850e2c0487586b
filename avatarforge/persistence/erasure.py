"""Erasing jobs inside the caller's transaction: rows go at once, objects are put down to be deleted.

So does what is past its age: events of the log and idempotency keys.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, func, select, tuple_, update

from avatarforge.domain.changes import LIFETIME, JobChange
from avatarforge.persistence.database import read_clock
from avatarforge.persistence.tables import (
    customers,
    idempotency_keys,
    job_events,
    object_deletions,
    profile_photo_jobs,
    profile_photos,
    tracker_shards,
    webhook_attempts,
    webhook_deliveries,
)
from avatarforge.storage.keys import job_prefix

STRAGGLER_PAUSE = timedelta(days=1)
"""After this all is deleted once more. It is longer than a replica that lost touch with its job may still be
at work, with every time limit of generation and storage that makes sense."""


def erase(connection: Connection, shard: int, erasures: Sequence[JobChange]) -> None:
    """Only their events' ids and numbers stay, and their objects' deletions."""
    job_ids = {change.job.job_id for change in erasures}
    connection.execute(
        update(job_events)
        .where(job_events.c.job_id.in_(job_ids), job_events.c.snapshot.is_not(None))
        .values(snapshot=None)
    )
    _erase_deliveries(connection, job_ids)
    _discount(connection, job_ids)
    for table in (idempotency_keys, profile_photos, profile_photo_jobs):
        connection.execute(table.delete().where(table.c.job_id.in_(job_ids)))
    clock = read_clock(connection)
    connection.execute(
        object_deletions.insert(),
        [row for change in erasures for row in _deletion_rows(shard, change, clock)],
    )


def _discount(connection: Connection, job_ids: Collection[str]) -> None:
    """Take the jobs that are on record from their customers' counts."""
    jobs = profile_photo_jobs.c
    counted = (
        select(jobs.customer_id, func.count()).where(jobs.job_id.in_(job_ids)).group_by(jobs.customer_id)
    )
    for customer_id, number in connection.execute(counted).all():
        connection.execute(
            update(customers)
            .where(customers.c.customer_id == customer_id)
            .values(photo_count=customers.c.photo_count - number)
        )


def _erase_deliveries(connection: Connection, job_ids: Collection[str]) -> None:
    # Locked first: an attempt that is being recorded is either seen here or finds its delivery gone.
    held = select(webhook_deliveries.c.delivery_id).where(webhook_deliveries.c.job_id.in_(job_ids))
    delivery_ids = connection.scalars(held.with_for_update()).all()
    if not delivery_ids:
        return
    for table in (webhook_attempts, webhook_deliveries):
        connection.execute(table.delete().where(table.c.delivery_id.in_(delivery_ids)))


def _deletion_rows(shard: int, erasure: JobChange, clock: datetime) -> Iterator[dict[str, Any]]:
    # A tracker's clock that runs ahead must not put the deletion off.
    job, at = erasure.job, min(erasure.event.at, clock)
    row = {"shard": shard, "prefix": job_prefix(job.customer_id, job.job_id)}
    yield {**row, "due_at": at}
    if job.finished_at is None or at - job.finished_at < STRAGGLER_PAUSE:
        yield {**row, "due_at": at + STRAGGLER_PAUSE}


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
    has_expired = keys.created_at < now - LIFETIME
    expired = (
        select(keys.customer_id, keys.key)
        .join(customers, customers.c.customer_id == keys.customer_id)
        .where(customers.c.shard == shard, has_expired)
        .order_by(keys.created_at)
        .limit(limit)
    )
    names = [tuple(row) for row in connection.execute(expired)]
    if names:
        connection.execute(idempotency_keys.delete().where(tuple_(keys.customer_id, keys.key).in_(names)))
