"""When old jobs are erased, and what that survives."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from avatarforge.domain.errors import StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.tracker.cleanup.retention import ConfirmedClock, JobRetention
from tests.factories import a_job
from tests.waiting import wait_until


class OneOldJob:
    def read_clock(self) -> datetime:
        return datetime.now(UTC)

    def list_ended(self, shard: int, before: datetime, limit: int) -> list[ProfilePhotoJob]:
        return [a_job()]


def a_retention(error: Exception, tried: list[Sequence[ProfilePhotoJob]]) -> JobRetention:
    async def erase(jobs: Sequence[ProfilePhotoJob]) -> None:
        tried.append(jobs)
        raise error

    clock = ConfirmedClock(OneOldJob(), lambda: datetime.now(UTC))
    clock.CONFIRMATION_DELAY_SECONDS = 0.0
    retention = JobRetention(0, OneOldJob(), age=timedelta(days=1), erase=erase, clock=clock)
    retention.INTERVAL_SECONDS = 0.01
    return retention


async def test_a_job_that_cannot_be_erased_is_tried_again_and_ends_nothing() -> None:
    tried: list[Sequence[ProfilePhotoJob]] = []
    working = asyncio.create_task(a_retention(ValueError("refused"), tried).run())
    await wait_until(lambda: len(tried) > 2)
    working.cancel()


async def test_an_overtaken_tracker_erases_nothing_more() -> None:
    tried: list[Sequence[ProfilePhotoJob]] = []
    with pytest.raises(StaleEpoch):
        await asyncio.wait_for(a_retention(StaleEpoch(0, 1, 2), tried).run(), 10)
    assert len(tried) == 1
