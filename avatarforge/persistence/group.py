"""Writing a group of changes: few statements for many jobs, inside the caller's transaction."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Insert, Select, bindparam, insert, select, update

from avatarforge.domain.changes import LIFETIME, Fence, IdempotencyKey, JobChange
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import JobNotFound, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.persistence.database import build_upserts, read_clock
from avatarforge.persistence.erasure import erase
from avatarforge.persistence.rows import PhotoKind, delivery_row, event_row, job_row, photo_row, progress_row
from avatarforge.persistence.tables import (
    customers,
    idempotency_keys,
    job_events,
    profile_photo_jobs,
    profile_photos,
    tracker_shards,
    webhook_deliveries,
)

# Statements are made once: to make them for each commit took a third of its time in this process.
_EPOCH = select(tracker_shards.c.epoch).where(tracker_shards.c.shard == bindparam("of_shard"))
_HELD, _SHOWN = _EPOCH.with_for_update(), _EPOCH.with_for_update(read=True)


def hold_shard(connection: Connection, shard: int, epoch: int) -> None:
    """Lock the shard's row until the transaction ends. Raises `StaleEpoch` unless the epoch is current."""
    _require_epoch(connection, _HELD, shard, epoch)


def show_fence(connection: Connection, fence: Fence) -> None:
    """Keep the shard's epoch as it is until the transaction ends, beside others that do the same. A group's
    commit waits for them, as they do for it. Raises `StaleEpoch` unless the fence's epoch is current."""
    _require_epoch(connection, _SHOWN, fence.shard, fence.epoch)


def _require_epoch(connection: Connection, lock: Select[int], shard: int, epoch: int) -> None:
    current = connection.scalar(lock, {"of_shard": shard})
    if current != epoch:
        raise StaleEpoch(shard, epoch, current or 0)


_NEW_JOBS = insert(profile_photo_jobs)
_NEW_PHOTOS = insert(profile_photos)
_NEW_DELIVERIES = insert(webhook_deliveries)


def write_group(connection: Connection, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
    """Hold the shard; write every event, and of each job its last value. Returns the events' numbers.

    Raises `StaleEpoch`, and `JobNotFound` when a change is of a job that was never submitted or is erased.
    """
    hold_shard(connection, shard, epoch)
    erased = {change.job.job_id for change in changes if change.is_erasure}
    submitted = {change.job.job_id for change in changes if change.is_submission}
    done = {change.job.job_id for change in changes if change.event.kind is EventKind.DONE}

    seqs = _append_events(connection, shard, changes, erased)
    last = {change.job.job_id: (change.job, seq) for change, seq in zip(changes, seqs, strict=True)}
    kept = [(job, seq) for job, seq in last.values() if job.job_id not in erased]
    new = [(job, seq) for job, seq in kept if job.job_id in submitted]

    submissions = [change.job for change in changes if change.is_submission]
    _introduce_customers(connection, shard, submissions, Counter(job.customer_id for job, _ in new))
    _insert(connection, _NEW_JOBS, [job_row(job, seq) for job, seq in new])
    _update_jobs(connection, [(job, seq) for job, seq in kept if job.job_id not in submitted])
    originals = [photo_row(job, PhotoKind.ORIGINAL, job.original) for job, _ in new]
    avatars = [
        photo_row(job, PhotoKind.AVATAR, job.outcome.avatar)
        for job, _ in kept
        if job.outcome is not None and job.job_id in done
    ]
    _insert(connection, _NEW_PHOTOS, originals + avatars)
    _name_submissions(connection, changes)
    deliveries = [
        delivery_row(shard, delivery)
        for change, seq in zip(changes, seqs, strict=True)
        if change.job.job_id not in erased and (delivery := WebhookDelivery.for_change(change.with_seq(seq)))
    ]
    _insert(connection, _NEW_DELIVERIES, deliveries)
    if erased:
        erase(connection, shard, [change for change in changes if change.is_erasure])
    return seqs


_NUMBERED = insert(job_events).returning(job_events.c.seq, job_events.c.job_id, job_events.c.revision)


def _append_events(
    connection: Connection, shard: int, changes: Sequence[JobChange], erased: Collection[str]
) -> list[int]:
    if not changes:
        return []
    rows = [event_row(shard, change, with_snapshot=change.job.job_id not in erased) for change in changes]
    # Both databases number the rows of an INSERT in the order of its VALUES, yet RETURNING promises none.
    # SQLAlchemy could sort, but would then send row by row to SQLite.
    returned = connection.execute(_NUMBERED, rows)
    numbers = {(job_id, revision): seq for seq, job_id, revision in returned}
    return [numbers[change.event.job_id, change.event.revision] for change in changes]


def _introduce_customers(
    connection: Connection, shard: int, jobs: Sequence[ProfilePhotoJob], kept: Mapping[str, int]
) -> None:
    """Bring the jobs' customers into being, and count the jobs that are `kept` of each."""
    first: dict[str, ProfilePhotoJob] = {}
    for job in jobs:
        first.setdefault(job.customer_id, job)
    rows = [
        {
            "customer_id": customer_id,
            "shard": shard,
            "created_at": job.created_at,
            "photo_count": kept.get(customer_id, 0),
        }
        for customer_id, job in first.items()
    ]
    _insert(connection, _NEW_CUSTOMERS[connection.dialect.name], rows)


_NEW_CUSTOMERS = build_upserts(
    customers, lambda new: {"photo_count": customers.c.photo_count + new.photo_count}
)
"""Customers who are there already have their photos counted."""


def _insert(connection: Connection, statement: Insert, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


_BY_ID = update(profile_photo_jobs).where(profile_photo_jobs.c.job_id == bindparam("of_job"))


def _update_jobs(connection: Connection, jobs: Sequence[tuple[ProfilePhotoJob, int]]) -> None:
    if not jobs:
        return
    found = connection.execute(
        _BY_ID, [{"of_job": job.job_id, **progress_row(job, seq)} for job, seq in jobs]
    )
    if found.rowcount != len(jobs):
        raise _missing(connection, [job for job, _ in jobs])


def _missing(connection: Connection, jobs: Sequence[ProfilePhotoJob]) -> JobNotFound:
    ids = profile_photo_jobs.c.job_id
    known = set(connection.scalars(select(ids).where(ids.in_([job.job_id for job in jobs]))))
    stranger = next(job for job in jobs if job.job_id not in known)
    return JobNotFound(stranger.customer_id, stranger.job_id)


_EXPIRED_KEY = idempotency_keys.delete().where(
    idempotency_keys.c.customer_id == bindparam("of_customer"),
    idempotency_keys.c.key == bindparam("of_key"),
    idempotency_keys.c.created_at < bindparam("expired_before"),
)


_NEW_NAMES = insert(idempotency_keys)


def _name_submissions(connection: Connection, changes: Iterable[JobChange]) -> None:
    """Keep the clients' names of the submissions."""
    named = [(change.event, change.idempotency_key) for change in changes if change.idempotency_key]
    if named:
        keep_keys(connection, [(event.customer_id, event.job_id, event.at, name) for event, name in named])


def keep_keys(connection: Connection, named: Sequence[tuple[str, str, datetime, IdempotencyKey]]) -> None:
    """Keep clients' keys, in place of those that have expired: customer, job, time and name of each."""
    # A clock of ours that runs ahead lets no key expire.
    now = read_clock(connection)
    connection.execute(
        _EXPIRED_KEY,
        [
            {"of_customer": customer_id, "of_key": name.key, "expired_before": min(at, now) - LIFETIME}
            for customer_id, _, at, name in named
        ],
    )
    rows = [
        {
            "customer_id": customer_id,
            "key": name.key,
            "fingerprint": name.fingerprint,
            "job_id": job_id,
            "created_at": at,
        }
        for customer_id, job_id, at, name in named
    ]
    connection.execute(_NEW_NAMES, rows)
