"""Databases for the contracts of persistence: each case runs over SQLite and over a real MariaDB."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings
from tests.servers.mariadb import MariaDbServer


@pytest.fixture(scope="package")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDbServer]:
    """A server for all tests that leave it running. It need not survive a loss of power."""
    with MariaDbServer(tmp_path_factory.mktemp("mariadb"), "--innodb-flush-log-at-trx-commit=0") as server:
        yield server


@pytest.fixture(params=["sqlite", "mariadb"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'avatarforge.db'}"
    server: MariaDbServer = request.getfixturevalue("mariadb")
    return server.create_database(f"test_{uuid4().hex}")


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """The URL of a database with this release's schema."""
    upgrade(empty_database_url)
    return empty_database_url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """For looking under the covers of `records`."""
    engine = open_engine(DatabaseSettings(), database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def records(engine: Engine) -> JobRepository:
    return JobRepository(engine)


@pytest.fixture
def epoch(records: JobRepository) -> int:
    """Of shard 0."""
    return records.claim_shard(0)


@pytest.fixture
def deliveries(engine: Engine) -> DeliveryRepository:
    return DeliveryRepository(engine)


@pytest.fixture
def deletions(engine: Engine) -> DeletionRepository:
    return DeletionRepository(engine)
