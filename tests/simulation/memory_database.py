"""The record in plain Python, in memory: the promises of `JobRepository`, `DeliveryRepository` and others.

The contract's own cases hold it to that (`test_memory_database.py`). It takes microseconds where SQL takes
milliseconds, so that thousands of simulations are affordable.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy.exc import IntegrityError

from avatarforge.domain.changes import (
    LIFETIME,
    Fence,
    IdempotencyKey,
    JobChange,
    KeptObjects,
    KnownKey,
    LogBounds,
    LoggedChange,
    ObjectDeletion,
)
from avatarforge.domain.customers import CustomerSummary
from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryReport, DeliveryState, WebhookDelivery
from avatarforge.domain.errors import JobNotFound, ShardCountChanged, ShardLeased, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.leases import KnownCluster, find_rival
from avatarforge.domain.status import TERMINAL_EVENTS, JobEvent
from avatarforge.persistence.erasure import STRAGGLER_PAUSE
from avatarforge.storage.keys import job_prefix

_FAR_AHEAD = datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Entry:
    shard: int
    event: JobEvent
    job: ProfilePhotoJob | None

    def to_logged_change(self) -> LoggedChange:
        return LoggedChange(event=self.event, job=self.job)


@dataclass(frozen=True, slots=True)
class _Key:
    known: KnownKey
    created_at: datetime


@dataclass(frozen=True, slots=True)
class _Deletion:
    shard: int
    prefix: str
    due_at: datetime


class MemoryDatabase:
    """All tables as dictionaries."""

    def __init__(self, now: Callable[[], datetime] = lambda: _FAR_AHEAD) -> None:
        self.now = now
        self._shards: int | None = None
        self._holders: dict[int, str | None] = {}
        self._clusters: dict[str, KnownCluster] = {}
        self.jobs: dict[str, ProfilePhotoJob] = {}
        self.log: list[_Entry] = []
        self.epochs: dict[int, int] = {}
        self.keys: dict[tuple[str, str], _Key] = {}
        self.deliveries: dict[str, tuple[int, WebhookDelivery]] = {}
        self.deletions: dict[int, _Deletion] = {}
        self._attempts: dict[str, list[DeliveryAttempt]] = {}
        self._customers: dict[str, tuple[int, datetime]] = {}
        self._entries: dict[str, list[_Entry]] = {}
        """The log by job."""
        self._revisions: set[tuple[str, int]] = set()
        self._ended: set[str] = set()
        self._pruned: dict[int, int] = {}
        self._models: dict[int, str] = {}
        self._seq = self._deletion_id = 0
        # The contract calls from several threads.
        self._lock = threading.RLock()

    # --- writing jobs -------------------------------------------------------------------------------

    def read_clock(self) -> datetime:
        return self.now()

    def claim_shard(self, shard: int, shards: int | None = None, cluster_id: str = "") -> int:
        with self._lock:
            if shards is not None and (recorded := self._shards or shards) != shards:
                raise ShardCountChanged(f"{recorded} shards are on record, and not {shards}")
            if cluster_id:
                self._announce(cluster_id)
                holder = self._holders.get(shard)
                if (rival := find_rival(cluster_id, holder, self._clusters.values(), self.now())) is not None:
                    raise ShardLeased(f"shard {shard} is {rival}'s")
            self._shards, self._holders[shard] = shards or self._shards, cluster_id or None
            self.epochs[shard] = self.epochs.get(shard, 0) + 1
            return self.epochs[shard]

    def keep_lease(self, shard: int, epoch: int, cluster_id: str) -> str | None:
        with self._lock:
            self._hold(shard, epoch)
            self._announce(cluster_id)
            rival = find_rival(cluster_id, None, self._clusters.values(), self.now())
            if rival is not None:
                self._holders[shard] = None
            return rival

    def _announce(self, cluster_id: str) -> None:
        now = self.now()
        known = self._clusters.get(cluster_id)
        first = now if known is None else known.first_seen_at
        self._clusters[cluster_id] = KnownCluster(cluster_id=cluster_id, first_seen_at=first, seen_at=now)

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        with self._lock:
            self._hold(shard, epoch)
            self._check(changes)
            return [self._write(shard, change) for change in changes]

    def check(self, shard: int, epoch: int) -> None:
        self._hold(shard, epoch)

    def read_back(self, changes: Sequence[JobChange]) -> list[int] | None:
        seqs = [self._seq_of(change.event) for change in changes]
        return None if None in seqs else [seq for seq in seqs if seq is not None]

    def forget_customer(self, shard: int, epoch: int, customer_id: str) -> bool:
        self._hold(shard, epoch)
        if any(job.customer_id == customer_id for job in self.jobs.values()):
            return False
        return self._customers.pop(customer_id, None) is not None

    def prune(self, shard: int, epoch: int, before: datetime, limit: int) -> int:
        self._hold(shard, epoch)
        mine = [
            name
            for name, key in self.keys.items()
            if self._customers[name[0]][0] == shard and key.created_at < before - LIFETIME
        ]
        for name in sorted(mine, key=lambda name: self.keys[name].created_at)[:limit]:
            del self.keys[name]
        old: list[_Entry] = []
        for entry in self.log:
            if entry.shard == shard:
                if entry.event.at >= before or len(old) == limit:
                    break
                old.append(entry)
        if old:
            gone = {entry.event.seq for entry in old}
            self.log = [entry for entry in self.log if entry.event.seq not in gone]
            for entry in old:
                self._entries[entry.event.job_id].remove(entry)
                self._revisions.discard((entry.event.job_id, entry.event.revision))
                if entry.event.kind in TERMINAL_EVENTS:
                    self._ended.discard(entry.event.job_id)
            self._pruned[shard] = old[-1].event.seq
        return len(old)

    def keep_model(self, shard: int, epoch: int, model: str) -> None:
        self._hold(shard, epoch)
        self._models[shard] = model

    def get_last_model(self, shard: int) -> str | None:
        return self._models.get(shard)

    def _show(self, fence: Fence) -> None:
        self._hold(fence.shard, fence.epoch)

    def _hold(self, shard: int, epoch: int) -> None:
        if (current := self.epochs.get(shard, 0)) != epoch or not current:
            raise StaleEpoch(shard, epoch, current)

    def _check(self, changes: Sequence[JobChange]) -> None:
        """Raise what the constraints raise, before anything is written."""
        revisions: set[tuple[str, int]] = set()
        ended: set[str] = set()
        named: set[tuple[str, str]] = set()
        submitted = {change.job.job_id for change in changes if change.is_submission}
        erased = {change.job.job_id for change in changes if change.is_erasure}
        for change in changes:
            event = change.event
            if (revision := (event.job_id, event.revision)) in self._revisions or revision in revisions:
                raise _refused("job_events.job_id, job_events.revision")
            revisions.add(revision)
            if event.kind in TERMINAL_EVENTS:
                if event.job_id in self._ended or event.job_id in ended:
                    raise _refused("job_events.terminal_job_id")
                ended.add(event.job_id)
            if (key := change.idempotency_key) is not None:
                name = (event.customer_id, key.key)
                known = self.keys.get(name)
                expired = min(event.at, self.now()) - LIFETIME
                if name in named or (known is not None and known.created_at >= expired):
                    raise _refused("idempotency_keys.customer_id, idempotency_keys.key")
                named.add(name)
            if event.job_id not in self.jobs and event.job_id not in submitted | erased:
                raise JobNotFound(event.customer_id, event.job_id)

    def _write(self, shard: int, change: JobChange) -> int:
        self._seq += 1
        change = change.with_seq(self._seq)
        event, job = change.event, change.job
        entry = _Entry(shard, event, None if change.is_erasure else job)
        self.log.append(entry)
        self._entries.setdefault(event.job_id, []).append(entry)
        self._revisions.add((event.job_id, event.revision))
        if change.is_submission:
            self._customers.setdefault(event.customer_id, (shard, job.created_at))
        if change.idempotency_key is not None:
            known = KnownKey(fingerprint=change.idempotency_key.fingerprint, job_id=event.job_id)
            self.keys[event.customer_id, change.idempotency_key.key] = _Key(known, event.at)
        if event.kind in TERMINAL_EVENTS:
            self._ended.add(event.job_id)
            if (delivery := WebhookDelivery.for_change(change)) is not None:
                self.deliveries[delivery.delivery_id] = (shard, delivery)
        if change.is_erasure:
            self._erase(shard, change)
        else:
            self.jobs[event.job_id] = job
        return self._seq

    def _erase(self, shard: int, change: JobChange) -> None:
        job_id, at = change.job.job_id, min(change.event.at, self.now())
        self.jobs.pop(job_id, None)
        for entry in self._entries[job_id]:
            entry.job = None
        for name in [name for name, key in self.keys.items() if key.known.job_id == job_id]:
            del self.keys[name]
        gone = [known for known, (_, delivery) in self.deliveries.items() if delivery.job_id == job_id]
        for delivery_id in gone:
            del self.deliveries[delivery_id]
            self._attempts.pop(delivery_id, None)
        prefix = job_prefix(change.job.customer_id, job_id)
        self._put_down(_Deletion(shard, prefix, at))
        finished_at = change.job.finished_at
        if finished_at is None or at - finished_at < STRAGGLER_PAUSE:
            self._put_down(_Deletion(shard, prefix, at + STRAGGLER_PAUSE))

    def _put_down(self, deletion: _Deletion) -> None:
        self._deletion_id += 1
        self.deletions[self._deletion_id] = deletion

    def _seq_of(self, wanted: JobEvent) -> int | None:
        for entry in self._entries.get(wanted.job_id, ()):
            if replace(entry.event, seq=0) == replace(wanted, seq=0):
                return entry.event.seq
        return None

    # --- reading jobs -------------------------------------------------------------------------------

    def list_unfinished(self, shard: int) -> list[ProfilePhotoJob]:
        mine = (
            job
            for job in self.jobs.values()
            if not job.status.is_terminal and self._customers[job.customer_id][0] == shard
        )
        return sorted(mine, key=lambda job: job.job_id)

    def find_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.customer_id == customer_id else None

    def find_job_by_id(self, job_id: str) -> ProfilePhotoJob | None:
        return self.jobs.get(job_id)

    def list_jobs_by_prefix(self, prefix: str, limit: int) -> list[ProfilePhotoJob]:
        return [self.jobs[job_id] for job_id in sorted(self.jobs) if job_id.startswith(prefix)][:limit]

    def list_job_ids(self, prefix: str, limit: int) -> list[str]:
        ids = {*self.jobs, *(entry.event.job_id for entry in self.log)}
        return sorted(job_id for job_id in ids if job_id.startswith(prefix))[:limit]

    def list_jobs(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]:
        mine = (job for job in self.jobs.values() if job.customer_id == customer_id)
        older = [job for job in mine if before is None or job.job_id < before]
        return sorted(older, key=lambda job: job.job_id, reverse=True)[:limit]

    def list_objects(self, job_ids: Collection[str]) -> dict[str, KeptObjects]:
        return {
            job_id: KeptObjects(is_terminal=job.status.is_terminal, keys=job.object_keys)
            for job_id, job in self.jobs.items()
            if job_id in job_ids
        }

    def list_customers(self, after: str | None, limit: int) -> list[CustomerSummary]:
        ids = sorted(known for known in self._customers if after is None or known > after)
        return [self._summary(customer_id) for customer_id in ids[:limit]]

    def find_customer(self, customer_id: str) -> CustomerSummary | None:
        return self._summary(customer_id) if customer_id in self._customers else None

    def list_shard_events(self, shard: int, seq: int, limit: int) -> list[LoggedChange]:
        newer = self.log[bisect_right(self.log, seq, key=lambda entry: entry.event.seq) :]
        return [entry.to_logged_change() for entry in newer if entry.shard == shard][:limit]

    def list_customer_events(
        self, customer_id: str, job_id: str | None, after: int, limit: int
    ) -> list[LoggedChange]:
        newer = self.log[bisect_right(self.log, after, key=lambda entry: entry.event.seq) :]
        mine = (
            entry
            for entry in newer
            if entry.event.customer_id == customer_id and job_id in (None, entry.event.job_id)
        )
        return [entry.to_logged_change() for entry in mine][:limit]

    def get_log_bounds(self, shard: int) -> LogBounds:
        pruned = self._pruned.get(shard, 0)
        latest = next((entry.event.seq for entry in reversed(self.log) if entry.shard == shard), 0)
        return LogBounds(pruned_seq=pruned, latest_seq=max(latest, pruned))

    def get_latest_seq(self, shard: int) -> int:
        return self.get_log_bounds(shard).latest_seq

    def list_ended(self, shard: int, before: datetime, limit: int) -> list[ProfilePhotoJob]:
        ended = [
            job
            for job in self.jobs.values()
            if job.status.is_terminal
            and job.created_at < before
            and self._customers[job.customer_id][0] == shard
        ]
        return sorted(ended, key=lambda job: job.job_id)[:limit]

    def forget_key(self, shard: int, epoch: int, customer_id: str, key: str, job_id: str) -> None:
        self._hold(shard, epoch)
        found = self.keys.get((customer_id, key))
        if found is not None and found.known.job_id == job_id:
            del self.keys[customer_id, key]

    def find_key(self, customer_id: str, key: str, now: datetime) -> KnownKey | None:
        found = self.keys.get((customer_id, key))
        return None if found is None or found.created_at < min(now, self.now()) - LIFETIME else found.known

    def ping(self) -> None:
        """It always answers."""

    def _summary(self, customer_id: str) -> CustomerSummary:
        jobs = self.list_jobs(customer_id, None, len(self.jobs))
        return CustomerSummary(
            customer_id=customer_id,
            created_at=self._customers[customer_id][1],
            jobs=len(jobs),
            latest=jobs[0] if jobs else None,
        )

    # --- deliveries ---------------------------------------------------------------------------------

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool:
        with self._lock:
            self._show(fence)
            known = self.deliveries.get(delivery.delivery_id)
            if known is None:
                return False
            changes = {"state": delivery.state, "tries": delivery.tries, "next_at": delivery.next_at}
            self.deliveries[delivery.delivery_id] = (known[0], replace(known[1], **changes))
            self._attempts.setdefault(delivery.delivery_id, []).append(attempt)
            return True

    def reschedule(
        self,
        customer_id: str,
        job_id: str,
        delivery_id: str,
        at: datetime,
        fence: Fence,
        key: IdempotencyKey | None = None,
    ) -> WebhookDelivery | None:
        self._show(fence)
        shard, known = self.deliveries.get(delivery_id, (0, None))
        if known is None or (known.customer_id, known.job_id) != (customer_id, job_id):
            return None
        waiting = replace(known, state=DeliveryState.PENDING, tries=0, next_at=at)
        self.deliveries[delivery_id] = (shard, waiting)
        return waiting

    def list_pending(self, shard: int) -> list[WebhookDelivery]:
        mine = (
            known
            for at, known in self.deliveries.values()
            if at == shard and known.state is DeliveryState.PENDING
        )
        return sorted(mine, key=lambda known: (known.next_at or known.created_at, known.seq))

    def find_delivery(self, delivery_id: str) -> WebhookDelivery | None:
        return self.deliveries.get(delivery_id, (0, None))[1]

    def list_reports(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        mine = (known for _, known in self.deliveries.values() if known.job_id == job_id)
        return [
            DeliveryReport(delivery=known, attempts=tuple(self._attempts.get(known.delivery_id, ())))
            for known in sorted(mine, key=lambda known: known.seq)
            if known.customer_id == customer_id
        ]

    # --- deletions ----------------------------------------------------------------------------------

    def list_due(self, shard: int, now: datetime, limit: int) -> list[ObjectDeletion]:
        due = [
            (deletion.due_at, deletion_id, deletion.prefix)
            for deletion_id, deletion in self.deletions.items()
            if deletion.shard == shard and deletion.due_at <= now
        ]
        return [
            ObjectDeletion(deletion_id=number, prefix=prefix) for _, number, prefix in sorted(due)[:limit]
        ]

    def complete(self, deletion_ids: Collection[int], fence: Fence) -> None:
        if not deletion_ids:
            return
        self._show(fence)
        for deletion_id in deletion_ids:
            self.deletions.pop(deletion_id, None)

    def postpone(self, deletion_ids: Collection[int], due_at: datetime, fence: Fence) -> None:
        if not deletion_ids:
            return
        self._show(fence)
        for deletion_id in deletion_ids:
            if (known := self.deletions.get(deletion_id)) is not None:
                self.deletions[deletion_id] = replace(known, due_at=due_at)


def _refused(constraint: str) -> IntegrityError:
    return IntegrityError(f"UNIQUE constraint failed: {constraint}", None, Exception(constraint))
