"""A private MariaDB: its own data folder, a free port on the loopback address, gone when it is stopped."""

import getpass
import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pymysql

USER, PASSWORD = "avatarforge", "only-for-tests"
OUTAGE_ERRORS = (
    3, 28, 126, 144, 1005, 1006, 1016, 1020, 1021, 1023, 1024, 1026, 1030, 1034, 1036, 1037, 1038,
    1040, 1041, 1043, 1044, 1045, 1047, 1049, 1053, 1054, 1064, 1077, 1078, 1079, 1080, 1105, 1114,
    1129, 1130, 1135, 1142, 1143, 1146, 1152, 1153, 1156, 1158, 1159, 1160, 1161, 1180, 1184, 1189,
    1190, 1194, 1195, 1203, 1205, 1206, 1213, 1223, 1226, 1227, 1290, 1305, 1317, 1364, 1412, 1615,
    1637, 1644, 1698, 1792, 1815, 1836, 1927, 1969, 1979, 3024, 4031, 8001, 9001,
)  # fmt: skip
"""Errors of MariaDB, of MySQL and of proxies before them that say nothing about the data."""


class MariaDbServer:
    """`mariadbd` over `folder`, which is filled by the first `start()`. Works as root and as anyone else.

    It may be killed and started again: port and data stay. Use it as a context manager, so that no server
    outlives its test. Needs `mariadbd` and `mariadb-install-db` in PATH (Debian: mariadb-server).
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, seconds: float = 60) -> None:
        """Return when the server answers. Raises `RuntimeError` with the end of its log if it does not."""
        fresh = not self._data.is_dir()
        if fresh:
            self._install()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._await_answer(time.monotonic() + seconds)
        if fresh:
            self.run(
                f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'", f"GRANT ALL ON *.* TO '{USER}'@'%'"
            )

    def stop(self, seconds: float = 30) -> None:
        """Shut down in order. A server that is not running is no error."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: no goodbye to clients, nothing flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process.pid

    def create_database(self, name: str) -> str:
        """Make an empty database and return its SQLAlchemy URL."""
        self.run(f"CREATE DATABASE `{name}`")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"mysql+pymysql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "mariadb.log"

    def _install(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self._scratch()}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            *self._as_user(),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"mariadb-install-db failed:\n{done.stdout.decode(errors='replace')}")

    def _command(self) -> list[str]:
        return [
            "mariadbd",
            "--no-defaults",
            *self._as_user(),
            f"--datadir={self._data}",
            f"--tmpdir={self._scratch()}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            # Relative to the data folder: a socket's path may have 107 bytes, less than many a folder here.
            "--socket=s",
            f"--pid-file={self.folder / 'mariadb.pid'}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            *self._options,
        ]

    def _scratch(self) -> Path:
        """A folder for temporary tables: a server that starts removes those of others from a shared one."""
        scratch = self.folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch

    @staticmethod
    def _as_user() -> list[str]:
        """`mariadbd` runs as root only when told to; the option is not for anyone else."""
        return [f"--user={getpass.getuser()}"] if os.geteuid() == 0 else []

    def _await_answer(self, deadline: float) -> None:
        while True:
            try:
                self.run("SELECT 1")
            except pymysql.err.OperationalError as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"mariadbd does not answer:\n{self._end_of_log()}") from error
                time.sleep(0.02)
            else:
                return

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def run(self, *statements: str) -> None:
        """Run the statements as root."""
        connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", autocommit=True)
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def free_port() -> int:
    """A TCP port that nobody listens on at 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
