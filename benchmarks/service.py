"""Services to measure: AvatarForge itself, and a MariaDB with every commit on the disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import load
from tests.servers.mariadb import MariaDbServer, free_port

ROOT = Path(__file__).parents[1]

WITHOUT_GENERATION = {"AVATARFORGE_DIFFUSION_NUM_CPUS": "1000"}
"""Serve knows no deployment of 0 replicas, so Stable Diffusion asks for more than Ray has: it never starts,
jobs wait, and no picture is made with the cores that the measured part needs."""

DURABLE = ("--innodb-flush-log-at-trx-commit=1", "--innodb-flush-method=O_DIRECT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A running AvatarForge."""

    url: str
    pid: int
    """Of the process that started Ray: all others descend from it."""
    grpc: str
    """Address for gRPC."""
    process: "subprocess.Popen[bytes]"

    def tracker(self) -> dict[str, int]:
        """What the tracker says of itself."""
        assert self.process.stdin is not None, "a pipe"
        assert self.process.stdout is not None, "a pipe"
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        figures: dict[str, int] = json.loads(self.process.stdout.readline())
        return figures

    def actor(self, name: str) -> psutil.Process:
        """The process of the one actor of ours whose Ray name begins so, such as `JobTracker`."""
        found = [
            process
            for process in psutil.Process(self.pid).children(recursive=True)
            if (command := process.cmdline()) and name in command[0] and command[0].startswith("ray::")
        ]
        if len(found) != 1:
            raise RuntimeError(f"There are {len(found)} actors named {name}.")
        return found[0]


@contextmanager
def service(
    folder: Path, settings: Mapping[str, str] | None = None, *, bare: bool = False
) -> Iterator[Service]:
    """AvatarForge with its data in `folder`, ready for requests. `settings` are variables.

    With `bare`, the bare ingress is deployed beside it in the same cluster. Raises `RuntimeError` with the
    end of its log if it does not start.
    """
    command = [sys.executable, "-m", "benchmarks.server", *(["--bare"] if bare else [])]
    variables = environment(folder, settings)
    log = folder / "service.log"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        try:
            assert process.stdout is not None, "a pipe"
            line = process.stdout.readline()
            if not line:
                end_of_log = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"AvatarForge did not start:\n{end_of_log}")
            yield Service(
                url=json.loads(line)["url"],
                pid=process.pid,
                grpc=f"127.0.0.1:{variables['AVATARFORGE_GRPC_PORT']}",
                process=process,
            )
        finally:
            stop(process)


def environment(folder: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with AvatarForge's replaced: data in `folder`, free ports, `settings`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AVATARFORGE_")}
    ours = {
        "AVATARFORGE_DATA_DIR": str(folder / "data"),
        "AVATARFORGE_HTTP_PORT": str(free_port()),
        "AVATARFORGE_GRPC_PORT": str(free_port()),
    }
    return inherited | ours | dict(settings or {})


def stop(process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    """Close the process's standard input, by which ours know that they should end, and wait."""
    assert process.stdin is not None, "a pipe"
    process.stdin.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def mariadb(folder: Path) -> Iterator[MariaDbServer]:
    """A private MariaDB that has a commit on the disk before it answers."""
    with MariaDbServer(folder, *DURABLE) as server:
        yield server


def wait_until_done(url: str, customer_id: str, job_id: str, seconds: float = 1800) -> dict[str, object]:
    """The job's last status. Raises `RuntimeError` if it ends otherwise than DONE."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = load.ask(
            url, load.get(f"/customers/{customer_id}/photos/{job_id}/status?waitSeconds=60")
        ).json()
        if status["isTerminal"]:
            if status["status"] != "DONE":
                raise RuntimeError(f"A job did not succeed: {status}")
            return status
    raise RuntimeError(f"The job {job_id} was not done within {seconds:g} s.")
