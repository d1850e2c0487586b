"""Bugs that are planted to see whether the simulation finds them. Each is made by patching the tracker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.generations import GenerationTask
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.ingress.live import job_cache
from avatarforge.tracker.cleanup.retention import ConfirmedClock
from avatarforge.tracker.client import TrackerClient
from avatarforge.tracker.commands import JobCommands
from avatarforge.tracker.feed import Feed
from avatarforge.tracker.jobs.committer import Committer, _Attempt
from avatarforge.tracker.queue import attempts
from avatarforge.tracker.queue.backends import Backend
from avatarforge.tracker.queue.dispatcher import Dispatcher
from avatarforge.tracker.queue.fair_queue import FairQueue
from avatarforge.tracker.tracker import JobTracker
from tests.simulation import memory_database
from tests.simulation.memory_database import MemoryDatabase

Plant = Callable[[pytest.MonkeyPatch], None]


def a_stale_attempt_is_published(patch: pytest.MonkeyPatch) -> None:
    build_task = attempts.build_task

    def first_attempts_task(job: ProfilePhotoJob) -> GenerationTask:
        return replace(build_task(job), attempt=1)

    patch.setattr(attempts, "build_task", first_attempts_task)


def changes_are_told_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    write = Committer._write
    last: dict[Committer, int] = {}

    async def told_first(self: Committer, group: list[Any], tries: int, *, is_new: bool) -> None:
        for place, pending in enumerate(group, 1):
            for listener in self._listeners:
                listener(pending.change.with_seq(last.get(self, 0) + place))
        await write(self, group, tries, is_new=is_new)

    def remembered(self: Committer, written: list[Any]) -> None:
        self._note_success()
        for pending, seq in written:
            last[self] = seq
            if not pending.is_rejected and not pending.future.done():
                pending.future.set_result(pending.change.with_seq(seq))

    patch.setattr(Committer, "_write", told_first)
    patch.setattr(Committer, "_confirm", remembered)


def a_lost_answer_is_not_read_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Attempt, "read_back", lambda _: None)


def epochs_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryDatabase, "_hold", lambda self, shard, epoch: None)


def a_requeued_job_is_lost(patch: pytest.MonkeyPatch) -> None:
    enqueue = Dispatcher.enqueue

    def forgetful(self: Dispatcher, job: ProfilePhotoJob) -> None:
        if not job.worker_losses:
            enqueue(self, job)

    patch.setattr(Dispatcher, "enqueue", forgetful)


def priorities_and_turns_are_ignored(patch: pytest.MonkeyPatch) -> None:
    def oldest(self: FairQueue, fits: Callable[[ProfilePhotoJob], bool]) -> ProfilePhotoJob | None:
        fitting = [job for job in self._jobs.values() if fits(job)]
        return self._jobs.pop(min(job.job_id for job in fitting)) if fitting else None

    patch.setattr(FairQueue, "pop", oldest)


def one_customer_is_served_first(patch: pytest.MonkeyPatch) -> None:
    def by_customer(self: FairQueue, fits: Callable[[ProfilePhotoJob], bool]) -> ProfilePhotoJob | None:
        fitting = [job for job in self._jobs.values() if fits(job)]
        fitting.sort(key=lambda job: (-job.priority, job.customer_id, job.job_id))
        return self._jobs.pop(fitting[0].job_id) if fitting else None

    patch.setattr(FairQueue, "pop", by_customer)


def a_202_comes_before_its_commit(patch: pytest.MonkeyPatch) -> None:
    async def hasty(self: Committer, change: JobChange) -> JobChange:
        self._enqueue(change)
        return change

    patch.setattr(Committer, "accept", hasty)


def what_was_refused_stays(patch: pytest.MonkeyPatch) -> None:
    async def kept(self: JobCommands, job: ProfilePhotoJob) -> None: ...

    patch.setattr(JobCommands, "_erase_rejected", kept)
    patch.setattr(TrackerClient, "retract", lambda self, customer_id, job_id: None)


def what_a_dead_tracker_had_refused_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TrackerClient, "retract", lambda self, customer_id, job_id: None)


def a_slot_is_kept(patch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def slot(self: Backend) -> AsyncIterator[Any]:
        held = self._replicas.reserve()
        _KEPT.append(held)
        yield await held.__aenter__()

    patch.setattr(Backend, "slot", slot)


_KEPT: list[Any] = []


def the_feed_forgets_what_it_has_dropped(patch: pytest.MonkeyPatch) -> None:
    on_change = Feed.on_change

    def forgetful(self: Feed, change: JobChange) -> None:
        complete_after = self._complete_after
        on_change(self, change)
        self._complete_after = complete_after

    patch.setattr(Feed, "on_change", forgetful)


def a_view_thinks_that_it_knows_everything(patch: pytest.MonkeyPatch) -> None:
    recent_changes = job_cache._Shard.recent_changes

    def credulous(self: Any, customer_id: str, after: int) -> Any:
        self._complete_after = min(after, self._complete_after)
        return recent_changes(self, customer_id, after)

    patch.setattr(job_cache._Shard, "recent_changes", credulous)


def interrupted_generations_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    async def left_alone(self: JobTracker, job: ProfilePhotoJob) -> None: ...

    patch.setattr(JobTracker, "_requeue", left_alone)


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    read_end = attempts._read_end
    patch.setattr(attempts, "_read_end", lambda updates, _, *listeners: read_end(updates, 1e9, *listeners))


def images_are_lost_with_their_attempt(patch: pytest.MonkeyPatch) -> None:
    requeue = ProfilePhotoJob.requeue

    def forgetful(self: ProfilePhotoJob, *, lost: bool) -> ProfilePhotoJob:
        return replace(requeue(self, lost=lost), variant_images=())

    patch.setattr(ProfilePhotoJob, "requeue", forgetful)


def only_the_avatar_counts_as_named(patch: pytest.MonkeyPatch) -> None:
    def name_few(self: ProfilePhotoJob) -> frozenset[str]:
        avatar = {self.outcome.avatar.key} if self.outcome else set()
        return frozenset({self.original.key} | avatar)

    patch.setattr(ProfilePhotoJob, "object_keys", property(name_few))


def an_outage_of_the_database_ends_the_writer(patch: pytest.MonkeyPatch) -> None:
    async def write(self: Committer, group: list[Any], tries: int, *, is_new: bool) -> None:
        try:
            self._confirm(await self._pool.run(self._retries(group, is_new=is_new)))
        except DatabaseUnavailable:
            await asyncio.Event().wait()

    patch.setattr(Committer, "_write", write)


def another_cluster_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory_database, "find_rival", lambda *_: None)


def one_clock_is_enough_to_erase(patch: pytest.MonkeyPatch) -> None:
    async def now(self: ConfirmedClock) -> datetime:
        return self._now()

    patch.setattr(ConfirmedClock, "confirm", now)


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
    images_are_lost_with_their_attempt,
    only_the_avatar_counts_as_named,
    an_outage_of_the_database_ends_the_writer,
    another_cluster_is_not_looked_for,
    one_clock_is_enough_to_erase,
)
