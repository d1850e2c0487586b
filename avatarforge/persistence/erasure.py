"""Erasing jobs inside the caller's transaction: rows go at once, objects are put down to be deleted."""

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, select, update

from avatarforge.domain.changes import JobChange
from avatarforge.persistence.tables import (
    customers,
    idempotency_keys,
    job_events,
    object_deletions,
    profile_photo_jobs,
    profile_photos,
    webhook_attempts,
    webhook_deliveries,
)
from avatarforge.storage.keys import job_prefix

STRAGGLER_PAUSE = timedelta(days=1)
"""After this all is deleted once more. It is longer than a replica that lost touch with its job may still be
at work, with every time limit of generation and storage that makes sense."""


def erase(connection: Connection, shard: int, erasures: Sequence[JobChange]) -> None:
    """What is left of the jobs are their events' ids and numbers, and their objects' deletions."""
    if not erasures:
        return
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
    connection.execute(
        object_deletions.insert(), [row for change in erasures for row in _deletion_rows(shard, change)]
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


def _deletion_rows(shard: int, erasure: JobChange) -> Iterator[dict[str, Any]]:
    job, at = erasure.job, erasure.event.at
    row = {"shard": shard, "prefix": job_prefix(job.customer_id, job.job_id)}
    yield {**row, "due_at": at}
    if job.finished_at is None or at - job.finished_at < STRAGGLER_PAUSE:
        yield {**row, "due_at": at + STRAGGLER_PAUSE}
