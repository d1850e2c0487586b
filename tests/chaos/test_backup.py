"""A backup that is taken while the service works restores into a whole: see docs/operations.md."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest

from avatarforge.client import Client, JobRef
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.keys import ALL_JOBS, original_key
from avatarforge.storage.s3 import S3Storage
from avatarforge.tracker.cleanup.sweeper import Sweeper
from tests.chaos.conftest import IS_LONG
from tests.servers.avatarforge import AvatarForgeServer
from tests.servers.mariadb import PASSWORD, USER, MariaDbServer
from tests.servers.s3 import S3Server

PORTRAIT = Path(__file__).parents[2] / "avatarforge" / "samples" / "portrait.png"
JOBS = 20
"""Of each kind: done before the backup, and waiting during it."""


pytestmark = pytest.mark.skipif(not IS_LONG, reason="`make chaos` restores a backup")


def client_of(mariadb: MariaDbServer, program: str, *words: str) -> list[str]:
    return [
        program,
        "--no-defaults",
        "--host=127.0.0.1",
        f"--port={mariadb.port}",
        f"--user={USER}",
        f"--password={PASSWORD}",
        *words,
    ]


def copy(source: S3Server, target: S3Server) -> None:
    there, here = S3Storage(source.settings()), S3Storage(target.settings())
    for stored in list(there.list("")):
        here.put(stored.key, BytesIO(there.get(stored.key)), "application/octet-stream")


def verify(variables: dict[str, str]) -> list[str]:
    environ = {**os.environ, **{f"AVATARFORGE_{name}": value for name, value in variables.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "avatarforge", "db", "verify", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    missing: list[str] = json.loads(done.stdout)["missing"]
    assert done.returncode == (1 if missing else 0), done.stderr
    return missing


def test_a_backup_of_a_working_service_restores_into_a_whole(tmp_path: Path) -> None:
    with (
        MariaDbServer(tmp_path / "mariadb") as mariadb,
        S3Server(tmp_path / "s3") as s3,
        S3Server(tmp_path / "s3-copy") as copied,
    ):
        live = {"DATABASE_URL": mariadb.create_database("live"), **s3.variables()}
        with AvatarForgeServer(tmp_path / "data", **live) as service, Client(service.url) as client:
            done = [client.submit("ana", PORTRAIT, steps=1) for _ in range(JOBS)]
            done = [client.wait(job, seconds=120) for job in done]
            waiting = [client.submit("ben", PORTRAIT, steps=10) for _ in range(JOBS)]
            waiting.append(client.submit("ben", PORTRAIT, steps=150))

            dump = subprocess.run(
                client_of(mariadb, "mariadb-dump", "--single-transaction", "live"),
                capture_output=True,
                check=True,
            ).stdout
            # Between the two halves of the backup: erased jobs have rows and no objects there, a new one has
            # an object and no row.
            client.erase(done[0])
            client.erase(waiting[-1])
            late = client.submit("eva", PORTRAIT, steps=1)
            copy(s3, copied)

        restored = {"DATABASE_URL": mariadb.create_database("restored"), **copied.variables()}
        subprocess.run(client_of(mariadb, "mariadb", "restored"), input=dump, check=True)
        gone = {original_key("ben", waiting[-1].job_id, "image/png")}
        missing = verify(restored)
        with AvatarForgeServer(tmp_path / "again", **restored) as service, Client(service.url) as client:
            assert {key for key in missing if "/ben/" in key} == gone
            assert {key.split("/")[2] for key in missing} == {done[0].job_id, waiting[-1].job_id}
            assert len(missing) == 3, "of one job the original, of the other its avatar too"

            for job in waiting[:-1]:
                client.wait(job, seconds=300)
            failed = client.get_status(waiting[-1], wait_seconds=60)
            assert (failed.status, failed.error and failed.error.code) == ("FAILED", "original_missing")
            assert {client.get_status(job).status for job in done} == {"DONE"}
        _sweep(restored["DATABASE_URL"], copied, late)


def _sweep(url: str, s3: S3Server, late: JobRef) -> None:
    """Two days later."""
    engine = open_engine(DatabaseSettings(), url)
    storage = S3Storage(s3.settings())
    sweeper = Sweeper(
        JobRepository(engine),
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
    engine.dispose()
