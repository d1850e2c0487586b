"""The record of all jobs and their event log, as the trackers and the reads of the ingress ask for it."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CompoundSelect, Select, exists, false, func, select, union

from avatarforge.domain.changes import LIFETIME, JobChange, KeptObjects, KnownKey, LogBounds, LoggedChange
from avatarforge.domain.customers import CustomerSummary
from avatarforge.domain.jobs import ProfilePhotoJob, first_job_id
from avatarforge.domain.status import JobEvent, ProcessingStatus
from avatarforge.persistence.database import Repository, begin_read, begin_write, read_clock
from avatarforge.persistence.erasure import prune_keys, prune_log
from avatarforge.persistence.group import hold_shard, write_group
from avatarforge.persistence.rows import (
    PhotoKind,
    Row,
    event_from_row,
    job_from_row,
    list_variant_keys,
    log_entry_from_row,
)
from avatarforge.persistence.shards import announce, check_count, claim, keep_lease
from avatarforge.persistence.tables import (
    customers,
    idempotency_keys,
    job_events,
    metadata,
    profile_photo_jobs,
    profile_photos,
    tracker_shards,
)

_TERMINAL = [status.value for status in ProcessingStatus if status.is_terminal]
_UNFINISHED = [status.value for status in ProcessingStatus if not status.is_terminal]


class JobRepository(Repository):
    """Jobs, customers and the event log.

    A read can simply be repeated. After `DatabaseUnavailable` the outcome of a `commit` is unknown: ask
    `read_back` with the same changes before repeating it, until `read_back` itself answers.
    """

    PAGE = 2_000
    """Rows that one statement reads where there may be any number of them."""

    # --- writing -----------------------------------------------------------------------------------

    def claim_shard(self, shard: int, shards: int | None = None, cluster_id: str = "") -> int:
        """Raise the shard's epoch and return it: 1 at first. Writers of lower epochs are overtaken.

        No two callers get the same epoch. It waits for the transaction that holds the shard. Where the last
        epoch's writer was of a version that did not count customers' photos, they are counted anew.

        A caller that names the number of shards gets `ShardCountChanged` where another one is on record. One
        that names its cluster gets `ShardLeased` while another cluster's writer holds the shard and lives, or
        a younger cluster waits for it. Within a cluster the newest caller takes it.
        """
        if cluster_id:
            with begin_write(self._engine) as connection:
                announce(connection, cluster_id)
        with begin_write(self._engine) as connection:
            return claim(connection, shard, shards, cluster_id)

    def check_shard_count(self, shards: int) -> None:
        """Raise `ShardCountChanged` if another number of shards is on record."""
        wanted = select(tracker_shards.c.shards).where(tracker_shards.c.shard == 0)
        with begin_read(self._engine) as connection:
            check_count(shards, connection.scalar(wanted))

    def keep_lease(self, shard: int, epoch: int, cluster_id: str) -> str | None:
        """Tell that the cluster lives which holds the shard. Where a younger one waits, the shard is handed
        over and that one's id returned. Raises `StaleEpoch` as `commit`.
        """
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            return keep_lease(connection, shard, cluster_id)

    def read_clock(self) -> datetime:
        with begin_read(self._engine) as connection:
            return read_clock(connection)

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        """Write the changes in one transaction, or none of them; returns the events' `seq`s in order.

        The numbers rise with the order of the changes and above all that the shard has committed before.
        One job may have several changes: each event is kept, and the last value. A submission brings its
        customer into being, and keeps its idempotency key in place of an expired one. The end of a job with
        a callback URL makes a webhook delivery that is due at once. An erasure deletes the job's rows, its
        deliveries, its idempotency key and its snapshots in the log, and has its objects deleted: now, and
        for an unfinished job once more after `erasure.STRAGGLER_PAUSE`; its events stay, as ids and numbers.
        No changes at all only check the epoch.

        Raises `StaleEpoch` when the shard's epoch is another; `JobNotFound` for a change of a job that is
        not there; SQLAlchemy's `IntegrityError` when an event repeats a revision, a job would end twice or
        the customer's idempotency key names another job still. On each of these nothing was kept. On
        `DatabaseUnavailable` the outcome is unknown: see the class.
        """
        with begin_write(self._engine) as connection:
            return write_group(connection, shard, epoch, changes)

    def check(self, shard: int, epoch: int) -> None:
        """Return if changes can be written: the shard can be held, and every table is there with all of its
        columns and may be written. Raises `StaleEpoch` as `commit`.
        """
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            for table in metadata.sorted_tables:
                nothing = select(table).where(false())
                connection.execute(table.insert().from_select(list(table.c.keys()), nothing))

    def read_back(self, changes: Sequence[JobChange]) -> list[int] | None:
        """Look up a commit whose answer was lost: its `seq`s in order, or `None` if it never came about.

        The answer is final: where the lost transaction still runs, this waits for its end.
        """
        if not changes:
            return []
        job_ids = {change.event.job_id for change in changes}
        # A locking read waits for rows that a running transaction has inserted. SQLite has one writer.
        logged = _EVENTS.where(job_events.c.job_id.in_(job_ids)).with_for_update(read=True)
        with begin_write(self._engine) as connection:
            events = [event_from_row(row) for row in connection.execute(logged).mappings()]
        found = {_identity(event): event.seq for event in events}
        seqs = [found.get(_identity(change.event)) for change in changes]
        return [seq for seq in seqs if seq is not None] if None not in seqs else None

    def forget_customer(self, shard: int, epoch: int, customer_id: str) -> bool:
        """Remove the customer. False, and nothing goes, while there are jobs, or for one who is not known.

        Idempotency keys went with the jobs; events stay in the log, as ids and numbers. Raises `StaleEpoch`
        as `commit`.
        """
        jobs = exists().where(profile_photo_jobs.c.customer_id == customers.c.customer_id)
        without_jobs = customers.delete().where(customers.c.customer_id == customer_id, ~jobs)
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            return connection.execute(without_jobs).rowcount == 1

    def prune(self, shard: int, epoch: int, before: datetime, limit: int) -> int:
        """Remove what is older than `before`, in one transaction; returns how many events went.

        The shard's log loses its oldest events, up to the first that is younger and at most `limit` of them;
        `get_log_bounds` then tells the last that went. At most `limit` idempotency keys of its customers go
        too that had expired by `before`. Raises `StaleEpoch` as `commit`.
        """
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            prune_keys(connection, shard, before, limit)
            return prune_log(connection, shard, before, limit)

    def keep_model(self, shard: int, epoch: int, model: str) -> None:
        """Put the model on record that last served as desired. Raises `StaleEpoch` as `commit`."""
        kept = tracker_shards.update().where(tracker_shards.c.shard == shard).values(model=model)
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            connection.execute(kept)

    # --- reading -----------------------------------------------------------------------------------

    def get_last_model(self, shard: int) -> str | None:
        """Return the model that `keep_model` put on record; `None` before the first."""
        wanted = select(tracker_shards.c.model).where(tracker_shards.c.shard == shard)
        return next((row["model"] for row in self._rows(wanted)), None)

    def list_unfinished(self, shard: int) -> list[ProfilePhotoJob]:
        """Return the shard's jobs that are PENDING or PROCESSING, oldest first.

        They are read page by page: of a hundred thousand the database would not answer in time, nor wait in a
        transaction until they are understood. What changes meanwhile may be missed: hold the shard's epoch.
        """
        jobs = profile_photo_jobs.c
        ours = _JOBS.join(customers, customers.c.customer_id == jobs.customer_id)
        page = ours.where(customers.c.shard == shard).order_by(jobs.job_id).limit(self.PAGE)
        for dialect in ("mysql", "mariadb"):
            # Left to itself MariaDB begins with the customers, and sorts all of their jobs for every page.
            page = page.prefix_with("STRAIGHT_JOIN", dialect=dialect)
        found: list[ProfilePhotoJob] = []
        # One after the other, as the index has them.
        for status in _UNFINISHED:
            last, count = "", self.PAGE
            while count == self.PAGE:
                rows = self._rows(page.where(jobs.status == status, jobs.job_id > last))
                found += map(job_from_row, rows)
                last, count = found[-1].job_id if rows else last, len(rows)
        return sorted(found, key=lambda job: job.job_id)

    def find_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """Return the customer's job; `None` also for a job of another customer."""
        wanted = _JOBS.where(
            profile_photo_jobs.c.job_id == job_id, profile_photo_jobs.c.customer_id == customer_id
        )
        return next((job_from_row(row) for row in self._rows(wanted)), None)

    def find_job_by_id(self, job_id: str) -> ProfilePhotoJob | None:
        """Return the job, whichever customer's it is: for operators alone."""
        rows = self._rows(_JOBS.where(profile_photo_jobs.c.job_id == job_id))
        return next((job_from_row(row) for row in rows), None)

    def list_job_ids(self, prefix: str, limit: int) -> list[str]:
        """Return at most `limit` of the ids that begin so, also of erased jobs whose events are kept."""
        ids = [
            select(table.c.job_id).where(table.c.job_id.startswith(prefix, autoescape=True))
            for table in (profile_photo_jobs, job_events)
        ]
        return [row["job_id"] for row in self._rows(union(*ids).order_by("job_id").limit(limit))]

    def list_jobs_by_prefix(self, prefix: str, limit: int) -> list[ProfilePhotoJob]:
        """Return at most `limit` jobs of all customers whose ids begin so, oldest first. `prefix` is of hex
        digits and hyphens."""
        job_id = profile_photo_jobs.c.job_id
        # The next letter ends the range: SQLite uses no index for LIKE.
        wanted = _JOBS.where(job_id >= prefix, job_id < prefix + "g").order_by(job_id).limit(limit)
        return [job_from_row(row) for row in self._rows(wanted)]

    def list_jobs(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]:
        """Return at most `limit` of the customer's jobs, newest first, from the last one before job `before`.

        `before` may be erased by now: ids sort by time.
        """
        wanted = _JOBS.where(profile_photo_jobs.c.customer_id == customer_id)
        if before is not None:
            wanted = wanted.where(profile_photo_jobs.c.job_id < before)
        newest_first = wanted.order_by(profile_photo_jobs.c.job_id.desc()).limit(limit)
        return [job_from_row(row) for row in self._rows(newest_first)]

    def list_ended(self, shard: int, before: datetime, limit: int) -> list[ProfilePhotoJob]:
        """Return at most `limit` of the shard's jobs that have ended and were made before that time, oldest
        first."""
        jobs = profile_photo_jobs.c
        ours = select(customers.c.customer_id).where(customers.c.shard == shard)
        wanted = (
            _JOBS.where(
                jobs.customer_id.in_(ours),
                jobs.status.in_(_TERMINAL),
                # Ids sort by time, and there is an index of them.
                jobs.job_id < first_job_id(before),
            )
            .order_by(jobs.job_id)
            .limit(limit)
        )
        return [job_from_row(row) for row in self._rows(wanted)]

    def list_customers(self, after: str | None, limit: int) -> list[CustomerSummary]:
        """Return at most `limit` customers by the bytes of their ids, from the one next to `after`."""
        page = select(customers.c.customer_id, customers.c.created_at, customers.c.photo_count)
        if after is not None:
            page = page.where(customers.c.customer_id > after)
        return self._summaries(page.order_by(customers.c.customer_id).limit(limit))

    def find_customer(self, customer_id: str) -> CustomerSummary | None:
        """Return the customer; `None` for one who never sent a photo."""
        page = select(customers.c.customer_id, customers.c.created_at, customers.c.photo_count)
        return next(iter(self._summaries(page.where(customers.c.customer_id == customer_id))), None)

    def list_shard_events(self, shard: int, seq: int, limit: int) -> list[LoggedChange]:
        """Return at most `limit` entries of the shard's log with a higher number, lowest first.

        Each comes with its job as it was then, or without one where the job has been erased since.
        """
        wanted = (
            select(job_events)
            .where(job_events.c.shard == shard, job_events.c.seq > seq)
            .order_by(job_events.c.seq)
            .limit(limit)
        )
        return [log_entry_from_row(row) for row in self._rows(wanted)]

    def list_customer_events(
        self, customer_id: str, job_id: str | None, after: int, limit: int
    ) -> list[LoggedChange]:
        """Return at most `limit` entries of the customer's log with a number above `after`, lowest first.

        With a `job_id` only those of this job of the customer. The rest as `list_shard_events`.
        """
        wanted = (
            select(job_events)
            .where(job_events.c.customer_id == customer_id, job_events.c.seq > after)
            .limit(limit)
        )
        if job_id is None:
            wanted = wanted.order_by(job_events.c.seq)
        else:
            # A job's revisions rise with its numbers, and there is an index of them.
            wanted = wanted.where(job_events.c.job_id == job_id).order_by(job_events.c.revision)
        return [log_entry_from_row(row) for row in self._rows(wanted)]

    def list_job_events(self, job_id: str) -> list[LoggedChange]:
        """Return the job's entries of the log, lowest first. The rest as `list_shard_events`."""
        wanted = select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.revision)
        return [log_entry_from_row(row) for row in self._rows(wanted)]

    def list_objects(self, job_ids: Collection[str]) -> dict[str, KeptObjects]:
        """Return the objects that the jobs name, by id; jobs that are not on record are left out."""
        jobs, photos = profile_photo_jobs.c, profile_photos.c
        wanted = (
            select(jobs.job_id, jobs.status, jobs.images, photos.object_key)
            .outerjoin_from(profile_photo_jobs, profile_photos, photos.job_id == jobs.job_id)
            .where(jobs.job_id.in_(job_ids))
        )
        statuses: dict[str, ProcessingStatus] = {}
        keys: dict[str, set[str]] = {}
        for row in self._rows(wanted):
            statuses[row["job_id"]] = ProcessingStatus(row["status"])
            keys.setdefault(row["job_id"], set()).update(
                (row["object_key"], *list_variant_keys(row["images"]))
            )
        return {
            job_id: KeptObjects(is_terminal=status.is_terminal, keys=frozenset(keys[job_id]))
            for job_id, status in statuses.items()
        }

    def list_object_keys(self) -> set[str]:
        """Return the keys of all images on record."""
        with begin_read(self._engine) as connection:
            keys = set(connection.scalars(select(profile_photos.c.object_key)))
            variants = select(profile_photo_jobs.c.images).where(profile_photo_jobs.c.images.is_not(None))
            return keys.union(*map(list_variant_keys, connection.scalars(variants)))

    def get_log_bounds(self, shard: int) -> LogBounds:
        """Return the bounds of the shard's log at this moment."""
        pruned = select(tracker_shards.c.pruned_seq).where(tracker_shards.c.shard == shard)
        latest = select(func.max(job_events.c.seq)).where(job_events.c.shard == shard)
        with begin_read(self._engine) as connection:
            row = connection.execute(
                select(
                    func.coalesce(pruned.scalar_subquery(), 0).label("pruned"),
                    func.coalesce(latest.scalar_subquery(), 0).label("latest"),
                )
            ).one()
        # Of a log that was pruned to its end the last event's number is still known.
        return LogBounds(pruned_seq=row.pruned, latest_seq=max(row.latest, row.pruned))

    def get_latest_seq(self, shard: int) -> int:
        """Return the number of the shard's last event; 0 before the first."""
        return self.get_log_bounds(shard).latest_seq

    def find_key(self, customer_id: str, key: str, now: datetime) -> KnownKey | None:
        """Return what the customer sent under this idempotency key; `None` if it is unknown, or expired, also
        by the database's clock."""
        keys = idempotency_keys.c
        wanted = select(keys.fingerprint, keys.job_id, keys.created_at).where(
            keys.customer_id == customer_id, keys.key == key
        )
        with begin_read(self._engine) as connection:
            row = connection.execute(wanted).first()
            if row is None or row.created_at < min(now, read_clock(connection)) - LIFETIME:
                return None
        return KnownKey(fingerprint=row.fingerprint, job_id=row.job_id)

    def forget_key(self, shard: int, epoch: int, customer_id: str, key: str, job_id: str) -> None:
        """Let the key stand for this job no more: the next upload under it makes a new one. Raises
        `StaleEpoch` as `commit`."""
        keys = idempotency_keys.c
        this = (keys.customer_id == customer_id) & (keys.key == key) & (keys.job_id == job_id)
        with begin_write(self._engine) as connection:
            hold_shard(connection, shard, epoch)
            connection.execute(idempotency_keys.delete().where(this))

    def ping(self) -> None:
        """Return if the database answers a query now."""
        with begin_read(self._engine) as connection:
            connection.execute(select(1))

    def close(self) -> None:
        """Close the connections that are not in use; a later call opens new ones."""
        self._engine.dispose()

    def _summaries(self, page: Select[Any]) -> list[CustomerSummary]:
        return [
            CustomerSummary(
                customer_id=row["summary_customer_id"],
                created_at=row["summary_created_at"],
                jobs=row["summary_jobs"],
                latest=None if row["job_id"] is None else job_from_row(row),
            )
            for row in self._rows(_summarise(page))
        ]

    def _rows(self, wanted: Select[Any] | CompoundSelect[Any]) -> Sequence[Row]:
        with begin_read(self._engine) as connection:
            return connection.execute(wanted).mappings().all()


# --- statements -----------------------------------------------------------------------------------------

_PHOTO_COLUMNS = ("object_key", "media_type", "size", "sha256", "width", "height")
_ORIGINAL = profile_photos.alias("original")
_AVATAR = profile_photos.alias("avatar")
_COLUMNS = [
    *profile_photo_jobs.c,
    *(_ORIGINAL.c[name].label(f"{PhotoKind.ORIGINAL}_{name}") for name in _PHOTO_COLUMNS),
    *(_AVATAR.c[name].label(f"{PhotoKind.AVATAR}_{name}") for name in _PHOTO_COLUMNS),
]

_EVENTS = select(*(column for column in job_events.c if column.name != "snapshot"))


def _with_photos(jobs: Any) -> Any:
    """One statement reads a job with its photos, so that both are of one moment."""
    for photos, kind in ((_ORIGINAL, PhotoKind.ORIGINAL), (_AVATAR, PhotoKind.AVATAR)):
        same = (photos.c.job_id == profile_photo_jobs.c.job_id) & (photos.c.kind == kind.value)
        jobs = jobs.outerjoin(photos, same)
    return jobs


_JOBS = select(*_COLUMNS).select_from(_with_photos(profile_photo_jobs))


def _summarise(page: Select[Any]) -> Select[Any]:
    """Each customer of the page with the columns of the latest job."""
    listed = page.subquery("listed")
    jobs = profile_photo_jobs
    # Not `max()`: inside a statement MariaDB would read all of the customer's entries of the index for it.
    latest_id = (
        select(jobs.c.job_id)
        .where(jobs.c.customer_id == listed.c.customer_id)
        .order_by(jobs.c.job_id.desc())
        .limit(1)
    )
    latest = listed.outerjoin(jobs, jobs.c.job_id == latest_id.correlate(listed).scalar_subquery())
    return (
        select(
            listed.c.customer_id.label("summary_customer_id"),
            listed.c.created_at.label("summary_created_at"),
            listed.c.photo_count.label("summary_jobs"),
            *_COLUMNS,
        )
        .select_from(_with_photos(latest))
        .order_by(listed.c.customer_id)
    )


def _identity(event: JobEvent) -> tuple[object, ...]:
    """Return the values that tell an event from one that another tracker wrote under the same revision."""
    return event.job_id, event.revision, event.kind, event.attempt, event.at
