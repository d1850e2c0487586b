"""Twins in memory of what the tracker talks to. Faults are switched on by tests, not patched in."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.errors import DatabaseUnavailable, Overtaken
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import (
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import ProfilePhotoJob
from tests.factories import an_outcome


class MemoryRecords:
    """The record of jobs and events, as `JobRecords` keeps it."""

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

    def claim_shard(self, shard: int) -> int:
        self._answer()
        self.epochs[shard] = self.epochs.get(shard, 0) + 1
        return self.epochs[shard]

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        self._answer()
        if self.hold_starts is not None and any(change.event.kind is EventKind.STARTED for change in changes):
            self.starts_held += 1
            self.hold_starts.wait(10)
        if self.epochs[shard] != epoch:
            raise Overtaken(shard, epoch, self.epochs[shard])
        names = {(entry.job.job_id, entry.job.revision) for entry in self.log}
        if any((change.job.job_id, change.job.revision) in names for change in changes):
            raise ValueError("a change of this revision is in the log already")
        self.groups.append(len(changes))
        first = len(self.log) + 1
        seqs = list(range(first, first + len(changes)))
        for seq, change in zip(seqs, changes, strict=True):
            numbered = change.numbered(seq)
            self.log.append(numbered)
            if change.is_erasure:
                self.jobs.pop(change.job.job_id, None)
            else:
                self.jobs[change.job.job_id] = numbered.job
        if self.lose_answers:
            self.lose_answers -= 1
            raise DatabaseUnavailable("the answer was lost")
        return seqs

    def committed(self, changes: Sequence[JobChange]) -> list[int] | None:
        self._answer()
        seqs = {(entry.job.job_id, entry.job.revision): entry.event.seq for entry in self.log}
        found = [seqs.get((change.job.job_id, change.job.revision)) for change in changes]
        return None if None in found else [seq for seq in found if seq is not None]

    def unfinished(self, shard: int) -> list[ProfilePhotoJob]:
        self._answer()
        return sorted(
            (job for job in self.jobs.values() if not job.status.is_terminal), key=lambda job: job.job_id
        )

    def job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        self._answer()
        return self.jobs.get(job_id)

    def latest_seq(self, shard: int) -> int:
        self._answer()
        return len(self.log)

    def events_after(self, shard: int, seq: int, limit: int) -> list[LoggedChange]:
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
