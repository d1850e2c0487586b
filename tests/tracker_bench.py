"""A tracker over twins."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from avatarforge.domain.generations import GenerationProgress, GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.settings import TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.twins import MemoryDeletions, MemoryRecords, MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until

SETTINGS = TrackerSettings(commit_timeout_seconds=0.3, lease_seconds=0.2)


class Bench:
    """A tracker over twins, that can be killed and started again on the same records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = FolderStorage(folder)
        self.webhooks = MemoryWebhooks()
        self.records = MemoryRecords()
        self.replicas = ScriptedReplicas()
        self.settings = SETTINGS
        self.broken: list[Exception] = []
        self.trackers: list[JobTracker] = []

    async def start(self) -> JobTracker:
        tracker = JobTracker(
            0,
            self.settings,
            Ports(
                store=self.records,
                deletions=MemoryDeletions(self.records),
                deliveries=self.webhooks,
                storage=self.storage,
                webhooks=self.webhooks,
                replicas=self.replicas,
            ),
            on_broken=self.broken.append,
        )
        self.trackers.append(tracker)
        await tracker.start()
        return tracker

    async def ended(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        await wait_until(lambda: self.records.jobs[job.job_id].status.is_terminal)
        return self.records.jobs[job.job_id]

    def story(self, job: ProfilePhotoJob) -> list[EventKind]:
        return [change.event.kind for change in self.records.log if change.job.job_id == job.job_id]


async def silent(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
    yield GenerationProgress(step=1, total_steps=3)
    await asyncio.Event().wait()
