"""The service over a real MariaDB and a real S3 server, once for all tests that leave it running."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from avatarforge.client import Client
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.storage.s3 import S3Storage
from tests.servers.avatarforge import AvatarForgeServer
from tests.servers.mariadb import MariaDbServer
from tests.servers.s3 import S3Server


@dataclass(frozen=True)
class Installation:
    """The service and what lies behind it."""

    service: AvatarForgeServer
    mariadb: MariaDbServer
    s3: S3Server
    records: JobRepository
    storage: ObjectStorage


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("af")
    with MariaDbServer(folder / "mariadb") as mariadb, S3Server(folder / "s3") as s3:
        url = mariadb.create_database("avatarforge")
        with AvatarForgeServer(folder / "data", DATABASE_URL=url, **s3.variables()) as service:
            yield Installation(
                service,
                mariadb,
                s3,
                JobRepository(open_engine(DatabaseSettings(), url)),
                S3Storage(s3.settings()),
            )


@pytest.fixture
def client(installation: Installation) -> Iterator[httpx.Client]:
    with installation.service.client() as client:
        yield client


@pytest.fixture
def forge(installation: Installation) -> Iterator[Client]:
    """Our own client. Tests of the wire itself use `client`."""
    with Client(installation.service.url, timeout=90, retry_timeout=90) as forge:
        yield forge


@pytest.fixture(scope="session")
def portrait() -> bytes:
    """The sample photo."""
    return (Path(__file__).parents[2] / "avatarforge" / "samples" / "portrait.png").read_bytes()


def submitted(client: httpx.Client, customer_id: str, photo: bytes, **fields: str) -> httpx.Response:
    return client.post(f"/customers/{customer_id}", files={"photo": ("me.png", photo)}, data=fields)
