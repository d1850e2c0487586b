"""Jobs that have reached their age go as an erased one goes: a tombstone stays, rows and objects do not."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avatarforge.persistence import DeletionRepository
from avatarforge.tracker.cleanup.retention import ConfirmedClock, EventRetention, JobRetention
from tests.integration.service import running_service
from tests.waiting import wait_until


async def test_old_jobs_are_erased_with_their_images_and_young_and_unfinished_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConfirmedClock, "CONFIRMATION_DELAY_SECONDS", 0.1)
    monkeypatch.setattr(JobRetention, "INTERVAL_SECONDS", 0.2)
    monkeypatch.setattr(JobRetention, "BATCH", 2)
    async with running_service(tmp_path, tracker={"job_retention_days": 30}) as service:
        old = [await service.submitted() for _ in range(5)]
        for job_id in old:
            await service.ended(job_id)
        running = await service.running("ben")
        assert len(service.objects()) == 11
        service.clock.ahead = timedelta(days=29)
        assert all([(await service.get(job_id)).status_code == 200 for job_id in old])
        service.clock.ahead = timedelta(days=31)

        await wait_until(lambda: service.records.list_jobs("ana", None, 10) == [])
        [tracker] = service.running_trackers
        await tracker._janitor.clean(5)

        assert [service.story(job_id)[-1][1] for job_id in old] == ["erased"] * 5
        assert [(await service.get(job_id)).status_code for job_id in old] == [404] * 5
        assert service.objects() == service.objects(running)
        assert (await service.get(running, "ben")).status_code == 200


async def test_without_an_age_nothing_is_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfirmedClock, "CONFIRMATION_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(JobRetention, "INTERVAL_SECONDS", 0.01)
    async with running_service(tmp_path) as service:
        job_id = await service.submitted()
        await service.ended(job_id)
        service.clock.ahead = timedelta(days=36500)
        other = await service.submitted()
        await service.ended(other)

        assert (await service.get(job_id)).status_code == 200


@pytest.mark.parametrize("whose", ["ours", "the database's", "both"])
async def test_a_clock_that_is_wrong_for_a_while_erases_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Half a second stands for a minute."""
    monkeypatch.setattr(ConfirmedClock, "CONFIRMATION_DELAY_SECONDS", 1.0)
    for retention in (JobRetention, EventRetention):
        monkeypatch.setattr(retention, "INTERVAL_SECONDS", 0.05)
    async with running_service(tmp_path, tracker={"job_retention_days": 30}) as service:
        done = await service.submitted()
        await service.ended(done)
        true = service.clock.__call__ if whose == "the database's" else service.records.read_clock
        if whose == "ours":
            monkeypatch.setattr(service.records, "read_clock", lambda: datetime.now(UTC))
        running = await service.running("ben", timeoutSeconds="600")
        await asyncio.sleep(0.2)
        if whose == "the database's":
            monkeypatch.setattr(service.records, "read_clock", lambda: true() + timedelta(days=40))
        else:
            service.clock.ahead = timedelta(days=40)
        await service.kill_trackers()
        await service.start_trackers()
        await asyncio.sleep(0.5)
        service.clock.ahead = timedelta(0)
        await asyncio.sleep(1.5)

        assert (await service.get(done)).status_code == 200
        assert service.records.get_log_bounds(0).pruned_seq == 0
        if whose != "both":
            assert (await service.get(running, "ben")).json()["status"] in ("PENDING", "PROCESSING", "DONE")


async def test_a_clock_that_runs_ahead_neither_uses_up_nor_puts_off_the_deletions_of_an_erased_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica may still store its avatar: what is deleted once more later, is so by the right time."""
    async with running_service(tmp_path) as service:
        # The clock of this service is both: here the database has its own.
        monkeypatch.setattr(service.records, "read_clock", lambda: datetime.now(UTC))
        [tracker] = service.running_trackers
        erased = [await service.running("ben")]
        await service.erase(erased[0], "ben")
        service.clock.ahead = timedelta(days=40)
        erased.append(await service.running("ben"))
        await service.erase(erased[1], "ben")

        await tracker._janitor.clean(5)

        assert service.objects() == []
        right, list_due = datetime.now(UTC), DeletionRepository(service.records._engine).list_due
        assert list_due(0, right + timedelta(hours=23), 10) == []
        assert len(list_due(0, right + timedelta(hours=25), 10)) == 2
