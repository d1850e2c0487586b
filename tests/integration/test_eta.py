"""What the tracker foretells, beside what becomes true with a replica that batches by step."""

import asyncio
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from statistics import median

from avatarforge.domain.changes import NewJob
from avatarforge.domain.generations import (
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.settings import TrackerSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.feed import Feed, FeedCursor
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.tracker import JobTracker
from tests.factories import a_job, a_report, an_outcome
from tests.twins import MemoryDeletions, MemoryRecords, MemoryWebhooks, ScriptedReplicas
from tests.waiting import wait_until

LIMIT, PREFETCH = 4, 2
STEP_SECONDS = {1: 0.01, 2: 0.012, 4: 0.016}
CODING = 0.02
"""Seconds that each picture holds the device up."""


class Device:
    """Takes all running pictures one step further at a time, as the engine does, and computes nothing."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.pictures, self.busy_seconds, self.busy_step_seconds = 0, 0.0, 0.0
        self._free = asyncio.Semaphore(LIMIT)

    async def work_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            making = [job_id for job_id, left in self.left.items() if left]
            if not making:
                await asyncio.sleep(0.001)
                continue
            begun = clock()
            await asyncio.sleep(STEP_SECONDS[1 << (len(making) - 1).bit_length()])
            self.busy_step_seconds += clock() - begun
            for job_id in making:
                self.left[job_id] -= 1
                if not self.left[job_id]:
                    await asyncio.sleep(CODING)
                    self.pictures += 1
            self.busy_seconds += clock() - begun

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        assert task.parameters.steps is not None
        yield GenerationProgress()
        async with self._free:
            total = self.left[task.job_id] = task.parameters.steps
            while self.left[task.job_id]:
                yield GenerationProgress(step=total - self.left[task.job_id], total_steps=total)
                await asyncio.sleep(0.005)
        yield GenerationFinished(
            outcome=an_outcome(
                timings={"fetch": 0.0, "encode": 0.0, "steps": 0.0, "decode": 0.0, "upload": 0.0}
            )
        )

    def report(self) -> ReplicaReport:
        return a_report(
            limit=LIMIT,
            step_seconds=STEP_SECONDS,
            images_generated=self.pictures,
            busy_seconds=self.busy_seconds,
            busy_step_seconds=self.busy_step_seconds,
        )


async def test_half_of_what_is_told_is_right_within_a_third(tmp_path: Path) -> None:
    device, records, webhooks = Device(), MemoryRecords(), MemoryWebhooks()
    tracker = JobTracker(
        0,
        TrackerSettings(),
        Ports(
            store=records,
            deletions=MemoryDeletions(records),
            deliveries=webhooks,
            storage=FolderStorage(tmp_path),
            webhooks=webhooks,
            replicas=ScriptedReplicas(LIMIT + PREFETCH, device.generate),
        ),
        on_broken=lambda error: None,
    )
    await tracker.start()
    working = asyncio.create_task(device.work_forever())
    clock, randomness = asyncio.get_running_loop().time, random.Random(1)
    told: list[tuple[str, float, float]] = []
    ended: dict[str, float] = {}

    async def watch() -> None:
        """Note what is told of each job, and when it ends."""
        cursor = FeedCursor()
        while True:
            batch = await tracker.feed.read(cursor, 0.1)
            cursor = batch.cursor
            for change in batch.changes:
                if change.job is not None and change.job.status.is_terminal:
                    ended[change.job.job_id] = clock()
            if batch.forecast is not None:
                told.extend((job_id, clock(), left) for job_id, left in batch.forecast.seconds.items())
            await tracker.record_replica_report(device.report())
            await asyncio.sleep(Feed.MIN_FORECAST_INTERVAL_SECONDS / 5)

    watching = asyncio.create_task(watch())
    try:
        jobs: list[ProfilePhotoJob] = []
        for _ in range(3):
            wanted = [GenerationParameters(seed=1, strength=1.0, steps=randomness.choice((5, 15, 40)))
                      for _ in range(16)]  # fmt: skip
            answers = await tracker.submissions.submit(
                [NewJob(job=a_job(parameters=each)) for each in wanted]
            )
            jobs += [answer for answer in answers if isinstance(answer, ProfilePhotoJob)]
            await asyncio.sleep(0.8)
        await wait_until(lambda: len(ended) == len(jobs) == 48, deadline=60)
    finally:
        for task in (watching, working):
            task.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)
        await tracker.stop()
    # The first second tells nothing of what a picture costs beside its steps.
    began = told[0][1] + 1
    errors = [
        abs(left - (ended[job_id] - at)) / (ended[job_id] - at)
        for job_id, at, left in told
        if at > began and ended[job_id] - at > 0.1
    ]
    assert len(errors) > 50
    assert median(errors) < 0.3
