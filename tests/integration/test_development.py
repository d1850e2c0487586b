"""What `avatarforge dev` stands on: private servers of the real kind, and a program that is started again."""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from avatarforge.development.reloading import Happened, Reloaded
from avatarforge.development.servers import ServerDidNotStart, private_mariadb, private_s3
from avatarforge.domain.errors import StorageUnavailable
from avatarforge.persistence import open_engine
from avatarforge.persistence.upgrade import current, latest, upgrade
from avatarforge.settings import load_settings
from avatarforge.storage.s3 import S3Storage
from tests.waiting import wait_until


def test_a_private_mariadb_keeps_its_data(tmp_path: Path) -> None:
    with private_mariadb(tmp_path / "mariadb") as variables:
        upgrade(variables["AVATARFORGE_DATABASE_URL"])
    with private_mariadb(tmp_path / "mariadb") as variables:
        settings = load_settings(environ=variables)
        assert current(settings.database_url) == latest()
        engine = open_engine(settings.database, settings.database_url)
        with engine.connect() as connection:
            assert "MariaDB" in str(connection.execute(text("SELECT version()")).scalar())
        engine.dispose()


def test_a_private_s3_server_keeps_its_objects_and_lets_nobody_else_in(tmp_path: Path) -> None:
    with private_s3(tmp_path / "s3") as variables:
        S3Storage(load_settings(environ=variables).storage).put("a/b", io.BytesIO(b"picture"), "image/png")
    with private_s3(tmp_path / "s3") as again:
        key = "AVATARFORGE_STORAGE_SECRET_ACCESS_KEY"
        assert again[key] != variables[key]
        storage = S3Storage(load_settings(environ=again).storage)
        assert [entry.key for entry in storage.list("")] == ["a/b"]
        stranger = {**again, key: "wrong"}
        with pytest.raises(StorageUnavailable):
            S3Storage(load_settings(environ=stranger).storage).put("c", io.BytesIO(b"x"), "image/png")
        assert [entry.key for entry in storage.list("")] == ["a/b"]


def test_a_server_that_cannot_start_says_where_its_reasons_are(tmp_path: Path) -> None:
    (tmp_path / "mariadb" / "data").mkdir(parents=True)
    with pytest.raises(ServerDidNotStart, match=r"mariadb\.log"), private_mariadb(tmp_path / "mariadb"):
        raise AssertionError("an empty folder is no database")
    assert (tmp_path / "mariadb" / "mariadb.log").stat().st_size > 0


PROGRAM = """
import pathlib, sys, signal
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: ((folder / "log").open("a").write("interrupted\\n"), sys.exit(0)))
source = (folder / "watched" / "module.py").read_text()
(folder / "log").open("a").write(source + "\\n")
if source == "broken":
    sys.exit(3)
signal.pause()
"""


class Watched:
    """A program whose log is its sources, and what was told of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.told: list[tuple[Happened, str]] = []
        (folder / "watched").mkdir()
        self.write("one")

    def write(self, source: str, name: str = "module.py") -> None:
        # At once, as editors do it: a file that is half written would be a change of its own.
        fresh = self._folder / "fresh"
        fresh.write_text(source)
        fresh.rename(self._folder / "watched" / name)

    @property
    def log(self) -> list[str]:
        path = self._folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def run(self) -> None:
        command = [sys.executable, "-c", PROGRAM, str(self._folder)]

        def tell(happened: Happened, what: str) -> None:
            self.told.append((happened, what))
            if self.log[-1:] == ["stop"]:
                raise KeyboardInterrupt

        try:
            Reloaded(command, {}, [self._folder / "watched"]).run(tell)
        except KeyboardInterrupt:
            return


@contextmanager
def running(watched: Watched) -> Iterator[None]:
    thread = threading.Thread(target=watched.run)
    thread.start()
    try:
        yield
    finally:
        with (watched._folder / "log").open("a") as log:
            log.write("stop\n")
        watched.write("end")
        thread.join(30)
        assert not thread.is_alive()


async def test_a_change_starts_the_program_again_and_a_broken_one_waits_for_the_next(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    with running(watched):
        await wait_until(lambda: watched.log == ["one"], 30)
        watched.write("two")
        await wait_until(lambda: watched.log == ["one", "interrupted", "two"], 30)
        watched.write("notes", name="notes.txt")
        watched.write("broken")
        await wait_until(lambda: (Happened.ENDED, "3") in watched.told, 30)
        watched.write("three")
        await wait_until(lambda: watched.log[-1] == "three", 30)
    assert watched.log[:5] == ["one", "interrupted", "two", "interrupted", "broken"]
    changes = [what for happened, what in watched.told if happened is Happened.CHANGED]
    assert set(changes) == {"module.py"}, "a text file is no reason"
