"""Jobs that have reached their age go as an erased one goes: a tombstone stays, rows and objects do not."""

from datetime import timedelta
from pathlib import Path

import pytest

from avatarforge.tracker.retention import Retention
from tests.integration.service import running_service
from tests.waiting import wait_until


async def test_old_jobs_are_erased_with_their_images_and_young_and_unfinished_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retention, "EVERY", 0.2)
    monkeypatch.setattr(Retention, "BATCH", 2)
    async with running_service(tmp_path, tracker={"retention_days": 30}) as service:
        old = [await service.submitted() for _ in range(5)]
        for job_id in old:
            await service.ended(job_id)
        running = await service.running("ben")
        assert len(service.objects()) == 11
        service.clock.ahead = timedelta(days=29)
        assert all([(await service.get(job_id)).status_code == 200 for job_id in old])
        service.clock.ahead = timedelta(days=31)

        await wait_until(lambda: service.records.jobs_of("ana", None, 10) == [])
        [tracker] = service.running_trackers
        await tracker._janitor.clean(5)

        assert [service.story(job_id)[-1][1] for job_id in old] == ["erased"] * 5
        assert [(await service.get(job_id)).status_code for job_id in old] == [404] * 5
        assert service.objects() == service.objects(running)
        assert (await service.get(running, "ben")).status_code == 200


async def test_without_an_age_nothing_is_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retention, "EVERY", 0.01)
    async with running_service(tmp_path) as service:
        job_id = await service.submitted()
        await service.ended(job_id)
        service.clock.ahead = timedelta(days=36500)
        other = await service.submitted()
        await service.ended(other)

        assert (await service.get(job_id)).status_code == 200
