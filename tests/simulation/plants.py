"""Bugs that are planted to see whether the simulation finds them. Each is made by patching the tracker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.generations import GenerationTask
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.ingress import view
from avatarforge.tracker import attempts
from avatarforge.tracker.backends import Backend
from avatarforge.tracker.client import JobTrackers
from avatarforge.tracker.commands import Commands
from avatarforge.tracker.committer import Committer
from avatarforge.tracker.dispatcher import Dispatcher
from avatarforge.tracker.feed import Feed
from avatarforge.tracker.line import WaitingLine
from avatarforge.tracker.tracker import JobTracker
from tests.simulation.memory_database import MemoryDatabase

Plant = Callable[[pytest.MonkeyPatch], None]


def a_stale_attempt_is_published(patch: pytest.MonkeyPatch) -> None:
    task_of = attempts.task_of

    def first_attempts_task(job: ProfilePhotoJob) -> GenerationTask:
        return replace(task_of(job), attempt=1)

    patch.setattr(attempts, "task_of", first_attempts_task)


def changes_are_told_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    written, confirm = Committer._written, Committer._confirm
    last: dict[Committer, int] = {}

    async def told_first(self: Committer, group: list[Any]) -> list[Any]:
        for place, pending in enumerate(group, 1):
            self._on_committed(pending.change.numbered(last.get(self, 0) + place))
        return await written(self, group)

    def remembered(self: Committer, pending: Any, seq: int) -> None:
        last[self] = seq
        pending.disowned or pending.future.done() or pending.future.set_result(pending.change.numbered(seq))

    patch.setattr(Committer, "_written", told_first)
    patch.setattr(Committer, "_confirm", remembered)
    assert confirm is not remembered


def a_lost_answer_is_not_read_back(patch: pytest.MonkeyPatch) -> None:
    async def written(self: Committer, group: list[Any]) -> list[Any]:
        return await self._persistently(lambda: self._try(group))

    patch.setattr(Committer, "_written", written)


def epochs_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryDatabase, "_hold", lambda self, shard, epoch: None)


def a_requeued_job_is_lost(patch: pytest.MonkeyPatch) -> None:
    enqueue = Dispatcher.enqueue

    def forgetful(self: Dispatcher, job: ProfilePhotoJob) -> None:
        if not job.losses:
            enqueue(self, job)

    patch.setattr(Dispatcher, "enqueue", forgetful)


def priorities_and_turns_are_ignored(patch: pytest.MonkeyPatch) -> None:
    def oldest(self: WaitingLine, fits: Callable[[ProfilePhotoJob], bool]) -> ProfilePhotoJob | None:
        fitting = [job for job in self._jobs.values() if fits(job)]
        return self._jobs.pop(min(job.job_id for job in fitting)) if fitting else None

    patch.setattr(WaitingLine, "pop", oldest)


def one_customer_is_served_first(patch: pytest.MonkeyPatch) -> None:
    def by_customer(self: WaitingLine, fits: Callable[[ProfilePhotoJob], bool]) -> ProfilePhotoJob | None:
        fitting = [job for job in self._jobs.values() if fits(job)]
        fitting.sort(key=lambda job: (-job.priority, job.customer_id, job.job_id))
        return self._jobs.pop(fitting[0].job_id) if fitting else None

    patch.setattr(WaitingLine, "pop", by_customer)


def a_202_comes_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    async def hasty(self: Committer, change: JobChange) -> JobChange:
        self._enqueued(change)
        return change

    patch.setattr(Committer, "accept", hasty)


def what_was_refused_stays(patch: pytest.MonkeyPatch) -> None:
    async def kept(self: Commands, job: ProfilePhotoJob) -> None: ...

    patch.setattr(Commands, "write_off", kept)
    patch.setattr(JobTrackers, "disown", lambda self, customer_id, job_id: None)


def what_a_dead_tracker_had_refused_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobTrackers, "disown", lambda self, customer_id, job_id: None)


def a_slot_is_kept(patch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def slot(self: Backend) -> AsyncIterator[Any]:
        held = self._replicas.reserve()
        _KEPT.append(held)
        yield await held.__aenter__()

    patch.setattr(Backend, "slot", slot)


_KEPT: list[Any] = []


def the_feed_forgets_what_it_has_dropped(patch: pytest.MonkeyPatch) -> None:
    changed = Feed.changed

    def forgetful(self: Feed, change: JobChange) -> None:
        complete_after = self._complete_after
        changed(self, change)
        self._complete_after = complete_after

    patch.setattr(Feed, "changed", forgetful)


def a_view_thinks_that_it_knows_everything(patch: pytest.MonkeyPatch) -> None:
    recent = view._Shard.recent

    def credulous(self: Any, customer_id: str, after: int) -> Any:
        self._complete_after = min(after, self._complete_after)
        return recent(self, customer_id, after)

    patch.setattr(view._Shard, "recent", credulous)


def interrupted_generations_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    async def left_alone(self: JobTracker, job: ProfilePhotoJob) -> None: ...

    patch.setattr(JobTracker, "_take_back", left_alone)


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    last_of = attempts._last_of
    patch.setattr(attempts, "_last_of", lambda updates, seconds, tell: last_of(updates, 1e9, tell))


def an_outage_of_the_database_ends_the_writer(patch: pytest.MonkeyPatch) -> None:
    async def persistently(self: Committer, call: Callable[[], Any]) -> Any:
        try:
            return await self._in_thread(call)
        except DatabaseUnavailable:
            await asyncio.Event().wait()

    patch.setattr(Committer, "_persistently", persistently)


PLANTS: tuple[Plant, ...] = (
    a_stale_attempt_is_published,
    changes_are_told_before_the_commit,
    a_lost_answer_is_not_read_back,
    epochs_are_ignored,
    a_requeued_job_is_lost,
    priorities_and_turns_are_ignored,
    one_customer_is_served_first,
    a_202_comes_before_its_commit,
    what_was_refused_stays,
    what_a_dead_tracker_had_refused_stays,
    a_slot_is_kept,
    the_feed_forgets_what_it_has_dropped,
    a_view_thinks_that_it_knows_everything,
    interrupted_generations_are_not_taken_back,
    leases_never_end,
    an_outage_of_the_database_ends_the_writer,
)
