"""A backup that is taken while the service works restores into a whole: see docs/operations.md."""

import asyncio
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avatarforge.client import Client, JobRef
from avatarforge.storage.keys import ALL_JOBS, original_key
from avatarforge.tracker.cleanup.sweeper import Sweeper
from tests.chaos.conftest import IS_LONG
from tests.chaos.sites import Site, list_blocks, open_sites
from tests.servers.avatarforge import AvatarForgeServer

PORTRAIT = Path(__file__).parents[2] / "avatarforge" / "samples" / "portrait.png"
JOBS = 20
"""Of each kind: done before the backup, and waiting during it."""


pytestmark = pytest.mark.skipif(not IS_LONG, reason="`make chaos` restores a backup")


@pytest.mark.timeout(600)
def test_a_working_service_is_backed_up_lost_and_restored_elsewhere(tmp_path: Path) -> None:
    """The drill of the page, by its blocks."""
    blocks = list_blocks()
    dump, copy = blocks["Back up"]
    restore, verify = blocks["Restore"]
    with open_sites(tmp_path) as (here, elsewhere):
        service = AvatarForgeServer(here.folder / "data", **here.variables)
        with service, Client(service.url) as client:
            done = [client.submit("ana", PORTRAIT, steps=1) for _ in range(JOBS)]
            done = [client.wait(job, seconds=120) for job in done]
            waiting = [client.submit("ben", PORTRAIT, steps=10) for _ in range(JOBS)]
            waiting.append(client.submit("ben", PORTRAIT, steps=150))

            here.terminal.run(dump)
            # Between the two halves of the backup: erased jobs have rows and no objects there, a new one has
            # an object and no row.
            client.erase(done[0])
            client.erase(waiting[-1])
            late = client.submit("eva", PORTRAIT, steps=1)
            here.terminal.run(copy)
            service.kill()
        here.mariadb.kill()
        here.s3.stop()

        shutil.copy(here.terminal.folder / "avatarforge.sql", elsewhere.terminal.folder)
        elsewhere.terminal.run(restore)
        with pytest.raises(AssertionError) as refused:
            elsewhere.terminal.run(verify)
        missing = set(re.findall(r"customers/\S+", str(refused.value)))
        assert {key for key in missing if "/ben/" in key} == {
            original_key("ben", waiting[-1].job_id, "image/png")
        }
        assert {key.split("/")[2] for key in missing} == {done[0].job_id, waiting[-1].job_id}
        assert len(missing) == 3, "of one job the original, of the other its avatar too"

        service = AvatarForgeServer(elsewhere.folder / "data", **elsewhere.variables)
        with service, Client(service.url) as client:
            for job in waiting[:-1]:
                client.wait(job, seconds=300)
            failed = client.get_status(waiting[-1], wait_seconds=60)
            assert (failed.status, failed.error and failed.error.code) == ("FAILED", "original_missing")
            assert {client.get_status(job).status for job in done} == {"DONE"}
        _sweep(elsewhere, late)


def _sweep(site: Site, late: JobRef) -> None:
    """Two days later."""
    records, storage = site.records(), site.storage()
    sweeper = Sweeper(
        records,
        storage,
        owns_customer=lambda _: True,
        interval=timedelta(days=1),
        age=timedelta(days=2),
        now=lambda: datetime.now(UTC) + timedelta(days=3),
    )
    sweeper.CONFIRMATION_DELAY_SECONDS = 0
    assert [stored.key for stored in storage.list(f"{ALL_JOBS}eva/{late.job_id}")] != []
    asyncio.run(sweeper.sweep())
    assert list(storage.list(f"{ALL_JOBS}eva/")) == []
    records.close()
