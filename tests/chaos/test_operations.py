"""`docs/operations.md`: every block works on MariaDB and S3, and what is backed up is restored elsewhere.

In a short run only what is backed up, restored and rotated: each command takes a second or more to start.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.s3 import S3Storage
from tests.chaos.conftest import IS_LONG
from tests.documents import Block, blocks_of
from tests.jobs import a_job, submission
from tests.servers.mariadb import MariaDbServer
from tests.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.terminal import TREE, Terminal

OPERATIONS = TREE / "docs" / "operations.md"
USER = ("CREATE OR REPLACE USER forge@'%' IDENTIFIED BY 'first'", "GRANT ALL ON avatarforge.* TO forge@'%'")


class Site:
    """A database and a bucket with a terminal before them, as the page presumes it."""

    def __init__(self, folder: Path, backup: Path, mariadb: MariaDbServer, s3: S3Server) -> None:
        self.mariadb, self.s3 = mariadb, s3
        mariadb.run("CREATE DATABASE avatarforge", *USER)
        self.terminal = Terminal(folder / "tree")
        self.password, self.access_key = folder / "password", folder / "access-key"
        self.password.write_text("first\n")
        self.access_key.write_text(f"{ACCESS_KEY}\n{SECRET_KEY}\n")
        (folder / ".my.cnf").write_text(
            f"[client]\nhost=127.0.0.1\nport={mariadb.port}\nuser=root\nprotocol=tcp\n"
        )
        (folder / "rclone.conf").write_text(
            f"[s3]\ntype=s3\nprovider=Rclone\nendpoint={s3.url}\naccess_key_id={ACCESS_KEY}\n"
            f"secret_access_key={SECRET_KEY}\n[backup]\ntype=alias\nremote={backup}\n"
        )
        self.url = f"mysql+pymysql://forge@127.0.0.1:{mariadb.port}/avatarforge?password_file={self.password}"
        self.export(
            HOME=str(folder),
            PATH=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            RCLONE_CONFIG=str(folder / "rclone.conf"),
            AVATARFORGE_DATABASE_URL=self.url,
            AVATARFORGE_STORAGE_BUCKET=s3.bucket,
            AVATARFORGE_STORAGE_ENDPOINT_URL=s3.url,
            AVATARFORGE_STORAGE_CREDENTIALS_FILE=str(self.access_key),
            PASSWORD_FILE=str(self.password),
            CREDENTIALS_FILE=str(self.access_key),
            OLD_PASSWORD="first",
            NEW_PASSWORD="second",
            NEW_KEY_ID="rotated",
            NEW_SECRET="only-for-tests-too",
        )

    def export(self, **variables: str) -> None:
        """Set the variables for every block."""
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        with (self.terminal.folder / ".exports").open("a") as file:
            file.writelines(lines)

    def records(self) -> JobRepository:
        return JobRepository(open_engine(DatabaseSettings(), self.url))

    def storage(self) -> S3Storage:
        return S3Storage(self.s3.settings())


def list_blocks() -> dict[str, list[Block]]:
    """The page's blocks by the heading above them, without those that are skipped."""
    text = OPERATIONS.read_text(encoding="utf-8").splitlines()
    headings = {number: line[3:] for number, line in enumerate(text, 1) if line.startswith("## ")}
    found: dict[str, list[Block]] = {}
    for block in blocks_of(OPERATIONS, "docs/operations.md"):
        if block.skipped_because is None:
            heading = headings[max(number for number in headings if number < block.line)]
            found.setdefault(heading, []).append(block)
    return found


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """The place that is lost, and another one."""
    with (
        MariaDbServer(tmp_path / "here" / "mariadb") as mariadb,
        S3Server(tmp_path / "here" / "s3") as s3,
        MariaDbServer(tmp_path / "elsewhere" / "mariadb") as another_mariadb,
        S3Server(tmp_path / "elsewhere" / "s3") as another_s3,
    ):
        s3.keys.append(("rotated", "only-for-tests-too"))
        s3.stop()
        s3.start()
        backup = tmp_path / "backup"
        yield (
            Site(tmp_path / "here", backup, mariadb, s3),
            Site(tmp_path / "elsewhere", backup, another_mariadb, another_s3),
        )


def keep_a_job(site: Site) -> ProfilePhotoJob:
    job, records = a_job(), site.records()
    site.storage().put(job.original.key, BytesIO(b"photo"), "image/jpeg")
    records.commit(0, records.claim_shard(0), [submission(job)])
    found = records.find_job(job.customer_id, job.job_id)
    records.close()
    assert found is not None
    return found


@pytest.mark.timeout(600)
def test_what_the_page_says_works_and_a_lost_site_is_restored_elsewhere(sites: tuple[Site, Site]) -> None:
    here, elsewhere = sites
    blocks = list_blocks()

    def run(site: Site, heading: str) -> None:
        for block in blocks.pop(heading):
            site.terminal.run(block)

    if IS_LONG:
        run(here, "Install")
        run(here, "Upgrade")
        run(here, "Follow a job")
    else:
        upgrade(here.url)
    job = keep_a_job(here)
    run(here, "Back up")
    dump = here.terminal.folder / "avatarforge.sql"
    run(here, "Rotate secrets")
    assert here.password.read_text() == "second\n"
    records = here.records()
    assert records.find_job(job.customer_id, job.job_id) == job
    records.close()
    here.mariadb.stop()
    here.s3.stop()

    shutil.copy(dump, elsewhere.terminal.folder)
    run(elsewhere, "Restore")
    records = elsewhere.records()
    assert records.find_job(job.customer_id, job.job_id) == job
    assert [change.event.seq for change in records.list_shard_events(0, 0, 10)] == [job.seq]
    assert elsewhere.storage().get(job.original.key) == b"photo"
    records.close()
    assert blocks == {} or not IS_LONG, "all were run"


def test_every_alert_has_its_advice() -> None:
    rules = yaml.safe_load((TREE / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    listed = re.findall(r"^\| `(AvatarForge\w+)` \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == alerts
