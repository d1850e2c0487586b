"""The service between a database and a storage that can both be disturbed, and the figures of recovery.

`CHAOS_JOBS` says how many jobs are under way when something breaks: 24 by default, 200 in `make chaos`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.s3 import S3Storage
from benchmarks.photos import noisy_jpeg
from tests.chaos.crowd import Crowd, Outcome
from tests.checkpoints import tiny_models
from tests.servers.avatarforge import AvatarForgeServer
from tests.servers.http_proxy import HttpProxy
from tests.servers.mariadb import MariaDbServer
from tests.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.servers.tcp_proxy import TcpProxy

JOBS = int(os.environ.get("CHAOS_JOBS", "24"))
IS_LONG = JOBS >= 200
"""Whether the times that are promised are checked too: on a machine that does nothing else."""

SHORT_MEMORY = {"TRACKER_RECENT_EVENTS": "500", "INGRESS_RECENT_EVENTS": "500", "INGRESS_RECENT_JOBS": "200"}
"""What is kept in memory of the past is full within a minute or two, also after a process was killed: what
grows then, grows without end. And what is older has to come from the database."""

_figures: list[dict[str, object]] = []


def models_folder() -> Path | None:
    """The models to serve: the carried ones in a long run, in a short one a tiny checkpoint, since it is the
    faults that are tested and not the avatars."""
    return None if IS_LONG else tiny_models()


def told(fault: str, figure: str, value: float, unit: str) -> None:
    """Keep a figure for the table at the end of the run."""
    _figures.append({"fault": fault, "figure": figure, "value": round(value, 3), "unit": unit})


def assert_recovered(outcome: Outcome, fault: str, figure: str, after: datetime, within: float) -> None:
    """Every job comes to its end, and is done once; work went on soon enough after the given time."""
    outcome.await_ends()
    outcome.assert_all_done()
    seconds = outcome.seconds_until_work(after)
    told(fault, figure, seconds, "s")
    assert seconds <= within or not IS_LONG


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _figures:
        return
    terminalreporter.section(f"faults during {JOBS} jobs")
    for line in _figures:
        terminalreporter.write_line("{fault}: {figure} {value:g} {unit}".format(**line))
    if (path := os.environ.get("CHAOS_RESULTS")) is not None:
        Path(path).write_text(json.dumps({"jobs": JOBS, "figures": _figures}, indent=2) + "\n")


@dataclass(frozen=True)
class Credentials:
    """The files of the service's own user of the database and of its access key."""

    password: Path
    access_key: Path

    def create(self, mariadb: MariaDbServer, database: str) -> None:
        """Make the user, and write both files."""
        self.password.write_text("first\n")
        self.access_key.write_text(f"{ACCESS_KEY}\n{SECRET_KEY}\n")
        mariadb.run("CREATE USER forge@'%' IDENTIFIED BY 'first'", f"GRANT ALL ON {database}.* TO forge@'%'")


@dataclass(frozen=True)
class Rig:
    """The service and what lies behind it, each behind a proxy."""

    service: AvatarForgeServer
    mariadb: MariaDbServer
    database_proxy: TcpProxy
    s3: S3Server
    storage_proxy: HttpProxy
    records: JobRepository
    storage: ObjectStorage
    credentials: Credentials
    photo: bytes

    def crowd(self, jobs: int = JOBS, **options: float) -> Crowd:
        return Crowd(self.service.url, self.photo, jobs, **options)  # type: ignore[arg-type]  # by name

    def outcome(self, crowd: Crowd) -> Outcome:
        return Outcome(crowd, self.records, self.storage)


@pytest.fixture(scope="package")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("chaos")
    with (
        MariaDbServer(folder / "mariadb") as mariadb,
        S3Server(folder / "s3") as s3,
        TcpProxy(mariadb.port) as database_proxy,
        HttpProxy(s3.port) as storage_proxy,
    ):
        url = mariadb.create_database("avatarforge")
        models = models_folder()
        credentials = Credentials(folder / "password", folder / "access-key")
        credentials.create(mariadb, "avatarforge")
        service = AvatarForgeServer(
            folder / "data",
            DATABASE_URL=f"mysql+pymysql://forge@127.0.0.1:{database_proxy.port}/avatarforge"
            f"?password_file={credentials.password}",
            STORAGE_BUCKET=s3.bucket,
            STORAGE_ENDPOINT_URL=storage_proxy.url,
            STORAGE_CREDENTIALS_FILE=str(credentials.access_key),
            **SHORT_MEMORY,
            **({} if models is None else {"DIFFUSION_MODELS_DIR": str(models)}),
        )
        with service:
            yield Rig(
                service=service,
                mariadb=mariadb,
                database_proxy=database_proxy,
                s3=s3,
                storage_proxy=storage_proxy,
                records=JobRepository(open_engine(DatabaseSettings(), url)),
                storage=S3Storage(s3.settings()),
                credentials=credentials,
                photo=noisy_jpeg(20_000, 256),
            )
