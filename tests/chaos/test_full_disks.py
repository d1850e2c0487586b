"""A disk that is full in the middle of a crowd's jobs: objects', the database's (SQLite or MariaDB), Ray's.

`tests/integration/test_full_disks.py` has the short form, and the uploads'. Skipped where no file system may
be mounted.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.folder import FolderStorage
from benchmarks.photos import noisy_jpeg
from tests.chaos.conftest import IS_LONG, SHORT_MEMORY, models_folder, told
from tests.chaos.crowd import Crowd, Outcome, now
from tests.checkpoints import tiny_models
from tests.disks import filled, mounted
from tests.servers.avatarforge import AvatarForgeServer
from tests.servers.mariadb import MariaDbServer

pytestmark = [
    pytest.mark.skipif(not IS_LONG, reason="each disk is full for a while: `make chaos`"),
    pytest.mark.timeout(600),
]

FULL_SECONDS = 15.0
JOBS = 160


@dataclass(frozen=True)
class Rig:
    service: AvatarForgeServer
    disks: dict[str, Path]
    records: JobRepository
    storage: FolderStorage


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    data = tmp_path_factory.mktemp("full") / "data"
    with ExitStack() as stack:
        # Ray's session, its logs and ours lie where the others are mounted.
        disks = {"ray": stack.enter_context(mounted(data, 512))}
        for kind, mebibytes in (("objects", 256), ("database", 24)):
            disks[kind] = stack.enter_context(mounted(data / kind, mebibytes))
        url = f"sqlite:///{disks['database'] / 'avatarforge.db'}"
        models = {"DIFFUSION_MODELS_DIR": str(models_folder() or tiny_models())}
        service = AvatarForgeServer(data, DATABASE_URL=url, **SHORT_MEMORY, **models)
        stack.enter_context(service)
        records = JobRepository(open_engine(DatabaseSettings(), url))
        yield Rig(service, disks, records, FolderStorage(data / "objects"))


@pytest.mark.parametrize("kind", ["objects", "ray", "database"])
def test_a_full_disk_refuses_clearly_loses_nothing_and_is_over_once_there_is_room(
    rig: Rig, kind: str
) -> None:
    live_through(rig, kind)


def test_a_full_disk_of_mariadb_is_an_outage_that_is_over_once_there_is_room(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ExitStack() as stack:
        disk = stack.enter_context(mounted(tmp_path / "mariadb", 256))
        # Redo logs are written in place; tables that grow are what needs room.
        server = MariaDbServer(
            disk / "server", "--innodb-log-file-size=8M", "--innodb-autoextend-increment=1"
        )
        mariadb = stack.enter_context(server)
        url = mariadb.create_database("avatarforge")
        models = {"DIFFUSION_MODELS_DIR": str(models_folder() or tiny_models())}
        service = AvatarForgeServer(data, DATABASE_URL=url, **SHORT_MEMORY, **models)
        stack.enter_context(service)
        records = JobRepository(open_engine(DatabaseSettings(), url))
        rig = Rig(service, {"MariaDB": disk}, records, FolderStorage(data / "objects"))
        live_through(rig, "MariaDB")


def live_through(rig: Rig, kind: str) -> None:
    # Four a second for 40 s, so that photos still come once there is room.
    crowd = Crowd(rig.service.url, noisy_jpeg(600_000, 768), JOBS, pause=1.0)
    outcome = Outcome(crowd, rig.records, rig.storage)
    crowd.start()
    crowd.await_accepted(JOBS // 4)
    with filled(rig.disks[kind]):
        time.sleep(FULL_SECONDS)
        refused = crowd.refusals.copy()
    over = now()
    crowd.finish()
    outcome.await_ends()
    outcome.assert_all_done()
    told(f"disk full: {kind}", "uploads refused meanwhile", sum(refused.values()), "")
    told(f"disk full: {kind}", "work after its end", outcome.seconds_until_work(over), "s")
    assert set(crowd.refusals) <= {503, 507}, crowd.refusals
    assert refused or kind == "ray"
