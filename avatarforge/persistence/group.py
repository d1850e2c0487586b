"""Writing a group of changes: few statements for many jobs, inside the caller's transaction."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, insert, select, update
from sqlalchemy.dialects.mysql import insert as mariadb_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import JobNotFound, Overtaken
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence.rows import PhotoKind, event_row, job_row, photo_row, progress_row
from avatarforge.persistence.tables import (
    customers,
    job_events,
    profile_photo_jobs,
    profile_photos,
    tracker_shards,
)


def hold_shard(connection: Connection, shard: int, epoch: int) -> None:
    """Lock the shard's row until the transaction ends. Raises `Overtaken` unless the epoch is current."""
    held = select(tracker_shards.c.epoch).where(tracker_shards.c.shard == shard).with_for_update()
    current = connection.scalar(held)
    if current != epoch:
        raise Overtaken(shard, epoch, current or 0)


def write_group(connection: Connection, shard: int, changes: Sequence[JobChange]) -> list[int]:
    """Write every event, and of each job its last value. Returns the events' numbers in order.

    Raises `JobNotFound` when a change is of a job that was never submitted or is erased.
    """
    erased = {change.job.job_id for change in changes if change.is_erasure}
    submitted = {change.job.job_id for change in changes if change.is_submission}
    done = {change.job.job_id for change in changes if change.event.kind is EventKind.DONE}

    seqs = _append_events(connection, shard, changes, erased)
    last = {change.job.job_id: (change.job, seq) for change, seq in zip(changes, seqs, strict=True)}
    kept = [(job, seq) for job, seq in last.values() if job.job_id not in erased]
    new = [(job, seq) for job, seq in kept if job.job_id in submitted]

    _introduce_customers(connection, shard, [change.job for change in changes if change.is_submission])
    _insert(connection, profile_photo_jobs.insert(), [job_row(job, seq) for job, seq in new])
    _update_jobs(connection, [(job, seq) for job, seq in kept if job.job_id not in submitted])
    originals = [photo_row(job, PhotoKind.ORIGINAL, job.original) for job, _ in new]
    avatars = [
        photo_row(job, PhotoKind.AVATAR, job.outcome.avatar)
        for job, _ in kept
        if job.outcome is not None and job.job_id in done
    ]
    _insert(connection, profile_photos.insert(), originals + avatars)
    _erase(connection, erased)
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


def _introduce_customers(connection: Connection, shard: int, jobs: Sequence[ProfilePhotoJob]) -> None:
    first: dict[str, ProfilePhotoJob] = {}
    for job in jobs:
        first.setdefault(job.customer_id, job)
    rows = [
        {"customer_id": customer_id, "shard": shard, "created_at": job.created_at}
        for customer_id, job in first.items()
    ]
    _insert(connection, _insert_unless_known(connection), rows)


def _insert_unless_known(connection: Connection) -> Insert:
    if connection.dialect.name == "sqlite":
        return sqlite_insert(customers).on_conflict_do_nothing(index_elements=[customers.c.customer_id])
    # Not INSERT IGNORE, which makes a warning of every other fault too.
    return mariadb_insert(customers).on_duplicate_key_update(customer_id=customers.c.customer_id)


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


def _erase(connection: Connection, job_ids: Collection[str]) -> None:
    """What is left of the jobs are their events' ids and numbers."""
    if not job_ids:
        return
    connection.execute(
        update(job_events)
        .where(job_events.c.job_id.in_(job_ids), job_events.c.snapshot.is_not(None))
        .values(snapshot=None)
    )
    connection.execute(profile_photos.delete().where(profile_photos.c.job_id.in_(job_ids)))
    connection.execute(profile_photo_jobs.delete().where(profile_photo_jobs.c.job_id.in_(job_ids)))
