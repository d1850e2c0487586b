"""A private Redis that keeps what it is told: its own folder, a free port on the loopback address."""

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.mariadb import free_port

PASSWORD = "only-for-tests"


class RedisServer:
    """`redis-server` over `folder`. It may be killed and started again: port and data stay.

    Use it as a context manager, so that no server outlives its test. Needs `redis-server` in PATH (Debian:
    redis-server).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, seconds: float = 30) -> None:
        """Return when the server answers. Raises `RuntimeError` with the end of its log if it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    "redis-server",
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD),
                    *("--dir", str(self.folder), "--appendonly", "yes", "--save", ""),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(
                    f"redis-server does not answer:\n{log.read_text(errors='replace')[-3000:]}"
                )
            time.sleep(0.02)

    def stop(self, seconds: float = 10) -> None:
        """End the server. One that is not running is no error."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                # Without the password it refuses: any answer will do, but for "I am still loading".
                return b"NOAUTH" in connection.recv(100)
        except OSError:
            return False
