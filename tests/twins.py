"""Twins in memory of what the tracker talks to. Faults are switched on by tests, not patched in."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from avatarforge.domain.changes import (
    Fence,
    IdempotencyKey,
    JobChange,
    KeptObjects,
    KnownKey,
    LoggedChange,
    ObjectDeletion,
)
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.generations import (
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.storage.keys import job_prefix
from tests.factories import an_outcome


class MemoryRecords:
    """The record of jobs and events, as `JobRepository` keeps it."""

    def __init__(self) -> None:
        self.epochs: dict[int, int] = {}
        self.log: list[JobChange] = []
        self.jobs: dict[str, ProfilePhotoJob] = {}
        self.down = False
        self.lose_answers = 0
        """So many of the next commits happen, and their answers are lost."""
        self.hold_starts: threading.Event | None = None
        """Set by a test: commits of started jobs wait for it."""
        self.starts_held = 0
        self.groups: list[int] = []
        """Sizes of the transactions."""
        self.keys: dict[tuple[str, str], KnownKey] = {}
        self.objects_asked = 0
        """How often it was asked which objects belong to jobs."""
        self.prefixes: list[str] = []
        """Of objects that have to go."""
        self.models: dict[int, str] = {}

    def list_ended(self, shard: int, before: datetime, limit: int) -> list[ProfilePhotoJob]:
        self._answer()
        old = (job for job in self.jobs.values() if job.status.is_terminal and job.created_at < before)
        return sorted(old, key=lambda job: job.job_id)[:limit]

    def read_clock(self) -> datetime:
        self._answer()
        return datetime.now(UTC)

    def keep_lease(self, shard: int, epoch: int, cluster_id: str) -> str | None:
        self._answer()
        return None

    def claim_shard(self, shard: int, shards: int | None = None, cluster_id: str = "") -> int:
        self._answer()
        self.epochs[shard] = self.epochs.get(shard, 0) + 1
        return self.epochs[shard]

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        self._answer()
        if self.hold_starts is not None and any(change.event.kind is EventKind.STARTED for change in changes):
            self.starts_held += 1
            self.hold_starts.wait(10)
        if self.epochs[shard] != epoch:
            raise StaleEpoch(shard, epoch, self.epochs[shard])
        names = {(entry.job.job_id, entry.job.revision) for entry in self.log}
        if any((change.job.job_id, change.job.revision) in names for change in changes):
            raise ValueError("a change of this revision is in the log already")
        named = [
            (change.job.customer_id, change.idempotency_key.key)
            for change in changes
            if change.idempotency_key
        ]
        if any(name in self.keys for name in named):
            raise ValueError("the key is in the record already")
        self.groups.append(len(changes))
        first = len(self.log) + 1
        seqs = list(range(first, first + len(changes)))
        for seq, change in zip(seqs, changes, strict=True):
            numbered = change.with_seq(seq)
            self.log.append(numbered)
            if (key := change.idempotency_key) is not None:
                self.keys[change.job.customer_id, key.key] = KnownKey(
                    fingerprint=key.fingerprint, job_id=change.job.job_id
                )
            if change.is_erasure:
                self.jobs.pop(change.job.job_id, None)
                self.prefixes.append(job_prefix(change.job.customer_id, change.job.job_id))
            else:
                self.jobs[change.job.job_id] = numbered.job
        if self.lose_answers:
            self.lose_answers -= 1
            raise DatabaseUnavailable("the answer was lost")
        return seqs

    def check(self, shard: int, epoch: int) -> None:
        self._answer()
        if self.epochs[shard] != epoch:
            raise StaleEpoch(shard, epoch, self.epochs[shard])

    def read_back(self, changes: Sequence[JobChange]) -> list[int] | None:
        self._answer()
        seqs = {(entry.job.job_id, entry.job.revision): entry.event.seq for entry in self.log}
        found = [seqs.get((change.job.job_id, change.job.revision)) for change in changes]
        return None if None in found else [seq for seq in found if seq is not None]

    def list_unfinished(self, shard: int) -> list[ProfilePhotoJob]:
        self._answer()
        return sorted(
            (job for job in self.jobs.values() if not job.status.is_terminal), key=lambda job: job.job_id
        )

    def find_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        self._answer()
        return self.jobs.get(job_id)

    def list_jobs(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]:
        self._answer()
        mine = sorted(
            (job for job in self.jobs.values() if job.customer_id == customer_id),
            key=lambda job: job.job_id,
            reverse=True,
        )
        return [job for job in mine if before is None or job.job_id < before][:limit]

    def forget_customer(self, shard: int, epoch: int, customer_id: str) -> bool:
        self._answer()
        known = any(entry.job.customer_id == customer_id for entry in self.log)
        return known and not self.list_jobs(customer_id, None, 1)

    def list_objects(self, job_ids: Collection[str]) -> dict[str, KeptObjects]:
        self._answer()
        found = {
            job_id: KeptObjects(is_terminal=job.status.is_terminal, keys=job.object_keys)
            for job_id, job in self.jobs.items()
            if job_id in job_ids
        }
        self.objects_asked += 1
        return found

    def forget_key(self, shard: int, epoch: int, customer_id: str, key: str, job_id: str) -> None:
        self.check(shard, epoch)
        if self.keys[customer_id, key].job_id == job_id:
            del self.keys[customer_id, key]

    def find_key(self, customer_id: str, key: str, now: datetime) -> KnownKey | None:
        self._answer()
        return self.keys.get((customer_id, key))

    def prune(self, shard: int, epoch: int, before: datetime, limit: int) -> int:
        self._answer()
        return 0

    def get_last_model(self, shard: int) -> str | None:
        self._answer()
        return self.models.get(shard)

    def keep_model(self, shard: int, epoch: int, model: str) -> None:
        self._answer()
        if self.epochs[shard] != epoch:
            raise StaleEpoch(shard, epoch, self.epochs[shard])
        self.models[shard] = model

    def get_latest_seq(self, shard: int) -> int:
        self._answer()
        return len(self.log)

    def list_shard_events(self, shard: int, seq: int, limit: int) -> list[LoggedChange]:
        self._answer()
        page = self.log[seq : seq + limit]
        return [
            LoggedChange(event=entry.event, job=entry.job if entry.event.job_id in self.jobs else None)
            for entry in page
        ]

    def _answer(self) -> None:
        if self.down:
            raise DatabaseUnavailable("switched off by the test")


async def three_steps(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    """A replica's stream for a job that goes well."""
    for step in range(1, 4):
        yield GenerationProgress(step=step, total_steps=3)
    yield GenerationFinished(outcome=an_outcome())


class MemoryDeletions:
    """The deletions that a `MemoryRecords` has on record, as `DeletionRepository` keeps them."""

    def __init__(self, records: MemoryRecords) -> None:
        self._records = records
        self.postponed: list[int] = []

    def list_due(self, shard: int, now: datetime, limit: int) -> list[ObjectDeletion]:
        prefixes = enumerate(self._records.prefixes)
        return [
            ObjectDeletion(deletion_id=place, prefix=prefix)
            for place, prefix in prefixes
            if prefix and place not in self.postponed
        ]

    def postpone(self, deletion_ids: Sequence[int], due_at: datetime, fence: Fence) -> None:
        self.postponed.extend(deletion_ids)

    def complete(self, deletion_ids: Sequence[int], fence: Fence) -> None:
        for place in deletion_ids:
            self._records.prefixes[place] = ""


class MemoryWebhooks:
    """Notes what would be delivered; also answers for the deliveries' record."""

    def __init__(self) -> None:
        self.expected: list[WebhookDelivery] = []
        self.forgotten: list[str] = []

    async def start(self, fence: Fence) -> None: ...

    async def stop(self) -> None: ...

    def expect(self, delivery: WebhookDelivery) -> None:
        self.expected.append(delivery)

    def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)

    def reschedule(
        self,
        customer_id: str,
        job_id: str,
        delivery_id: str,
        at: datetime,
        fence: Fence,
        key: IdempotencyKey | None = None,
    ) -> WebhookDelivery | None:
        known = [delivery for delivery in self.expected if delivery.delivery_id == delivery_id]
        return known[0] if known else None


Script = Callable[[GenerationTask], AsyncGenerator[GenerationUpdate, None]]


class ScriptedReplicas:
    """Replicas with `slots` slots in all, whose streams the test writes.

    Each attempt takes the next of `next_scripts`, and `script` once there is none.
    """

    def __init__(self, slots: int = 2, script: Script = three_steps) -> None:
        self._slots = asyncio.Semaphore(slots)
        self.script = script
        self.next_scripts: deque[Script] = deque()
        self.tasks: list[GenerationTask] = []
        self.closed: list[str] = []
        """Ids of the jobs whose stream was closed, in order."""

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator["_Slot"]:
        async with self._slots:
            yield _Slot(self)


class _Slot:
    replica_id = "twin"

    def __init__(self, replicas: ScriptedReplicas) -> None:
        self._replicas = replicas

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        self._replicas.tasks.append(task)
        script = (
            self._replicas.next_scripts.popleft() if self._replicas.next_scripts else self._replicas.script
        )
        stream = script(task)
        try:
            async for update in stream:
                yield update
        finally:
            await stream.aclose()
            self._replicas.closed.append(task.job_id)
