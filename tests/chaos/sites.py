"""Sites of an operator: a database and a bucket, and a terminal in which `docs/operations.md` is followed."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.s3 import S3Storage
from tests.documents import Block, blocks_of
from tests.servers.mariadb import MariaDbServer
from tests.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.terminal import TREE, Terminal

OPERATIONS = TREE / "docs" / "operations.md"
USER = ("CREATE OR REPLACE USER forge@'%' IDENTIFIED BY 'first'", "GRANT ALL ON avatarforge.* TO forge@'%'")


class Site:
    """A database and a bucket with a terminal before them, as the page presumes it."""

    def __init__(self, folder: Path, backup: Path, mariadb: MariaDbServer, s3: S3Server) -> None:
        self.folder, self.mariadb, self.s3 = folder, mariadb, s3
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
        self.variables = {
            "DATABASE_URL": self.url,
            "STORAGE_BUCKET": s3.bucket,
            "STORAGE_ENDPOINT_URL": s3.url,
            "STORAGE_CREDENTIALS_FILE": str(self.access_key),
        }
        """What makes a service work here, without the prefix."""
        self.export(
            HOME=str(folder),
            PATH=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            RCLONE_CONFIG=str(folder / "rclone.conf"),
            **{f"AVATARFORGE_{name}": value for name, value in self.variables.items()},
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


@contextmanager
def open_sites(folder: Path) -> Iterator[tuple[Site, Site]]:
    """The place that is lost, and another one."""
    with (
        MariaDbServer(folder / "here" / "mariadb") as mariadb,
        S3Server(folder / "here" / "s3") as s3,
        MariaDbServer(folder / "elsewhere" / "mariadb") as another_mariadb,
        S3Server(folder / "elsewhere" / "s3") as another_s3,
    ):
        s3.keys.append(("rotated", "only-for-tests-too"))
        s3.stop()
        s3.start()
        backup = folder / "backup"
        yield (
            Site(folder / "here", backup, mariadb, s3),
            Site(folder / "elsewhere", backup, another_mariadb, another_s3),
        )
