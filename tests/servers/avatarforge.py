"""The whole service as its users run it: `avatarforge up` in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from tests.servers.mariadb import free_port


class AvatarForgeServer:
    """Starts on entering, is ready then, and is stopped on leaving. Logs lie in the data folder."""

    def __init__(self, data_dir: Path, **variables: str) -> None:
        """`variables` are settings by the last part of their variable's name: `DATABASE_URL="…"`."""
        self.data_dir = data_dir
        self._port, self._grpc_port = free_port(), free_port()
        self._variables: dict[str, str] = {}
        self.configure(**variables)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def configure(self, **variables: str) -> None:
        """Settings for the next start."""
        self._variables |= {f"AVATARFORGE_{name}": value for name, value in variables.items()}

    @property
    def arguments(self) -> tuple[str, ...]:
        """What Python runs."""
        return ("-m", "avatarforge", "up")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def log(self) -> str:
        path = self.data_dir / "service.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=90)

    def start(self, seconds: float = 120) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        environ = {
            **os.environ,
            **self._variables,
            "AVATARFORGE_DATA_DIR": str(self.data_dir),
            "AVATARFORGE_HTTP_PORT": str(self._port),
            "AVATARFORGE_GRPC_PORT": str(self._grpc_port),
        }
        with (self.data_dir / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments], env=environ, stdout=log, stderr=log
            )
        self._await_ready(time.monotonic() + seconds)

    def stop(self, seconds: float = 30) -> None:
        """As Ctrl-C does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None

    def kill(self) -> None:
        """`kill -9` of all its processes at once, as when the machine loses power."""
        if self._process is None:
            return
        root = psutil.Process(self._process.pid)
        for process in [*root.children(recursive=True), root]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(30)
        self._process = None

    def processes(self, title: str) -> list[psutil.Process]:
        """The service's processes whose title begins so; Ray names them `ray::…`."""
        assert self._process is not None, "the service does not run"
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if process.cmdline() and process.cmdline()[0].startswith(title):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def all_processes(self) -> list[psutil.Process]:
        """The one that was started, and all that came of it."""
        assert self._process is not None, "the service does not run"
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _await_ready(self, deadline: float) -> None:
        assert self._process is not None, "just started"
        with self.client() as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise AssertionError(f"the service ended while it started:\n{self.log[-4000:]}")
                try:
                    if client.get("/readyz", timeout=5).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        self.kill()
        raise AssertionError(f"the service was not ready in time:\n{self.log[-4000:]}")
