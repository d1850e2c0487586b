"""A cluster of several nodes for tests, with the application on it."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import Settings, load_settings
from avatarforge.storage.folder import FolderStorage
from tests.chaos.crowd import Crowd, Outcome
from tests.servers.mariadb import free_port

Config = dict[str, Any]


class HostError(Exception):
    """A command to the nodes failed."""


class Nodes:
    """Commands to `tests.cluster.host`, and a client of the service."""

    def __init__(self, folder: Path, variables: dict[str, str], arguments: Config) -> None:
        """`arguments` are the application's, by group."""
        self.folder = folder
        self.http_port, self._gcs_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        # Sockets' paths may have 107 bytes.
        self._ray_folder = tempfile.mkdtemp(prefix="af-")
        self._redis_password = variables.get("RAY_REDIS_PASSWORD")
        # As in serve_config.yaml: one may stop while another answers.
        self._deployments: dict[str, Config] = {"Ingress": {"num_replicas": 2, "max_surge_percent": 100}}
        self._arguments = {"data_dir": str(folder / "data"), "access": {"required": "never"}, **arguments}
        self._log = (folder / "nodes.log").open("wb")
        token = folder / "ray-token"
        token.write_text(secrets.token_hex(32), encoding="ascii")
        environ = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_enable_metrics_collection": "0",
            # Nodes that share two cores answer late; one that was killed shows by its closed connection.
            "RAY_agent_register_timeout_ms": "150000",
            "RAY_worker_register_timeout_seconds": "150",
            "RAY_health_check_failure_threshold": "20",
            # A worker waits for the next head for as long as that may take to start.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "150",
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.1",
            # All nodes have the same address here, so that HAProxy's ports would clash.
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            **variables,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.host"],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    @property
    def settings(self) -> Settings:
        return load_settings(self._arguments, environ={})

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Have the host do it. Raises `HostError`."""
        process = self._process
        assert process.stdin is not None, "a pipe"
        assert process.stdout is not None, "a pipe"
        process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise HostError(f"the host ended during {name}:\n{self.log[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise HostError(f"{name}: {answer['error']}")
        return answer["value"]

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def start_head(self) -> None:
        """A head, or the next one at the same address."""
        self.call(
            "start_head",
            gcs_port=self._gcs_port,
            temp_dir=self._ray_folder,
            redis_password=self._redis_password,
        )
        self.call("connect")

    def add_worker(self, name: str) -> None:
        self.call("add_worker", name=name, cpus=4, gpus=2)

    def deploy(self, **changes: Config) -> None:
        """Deploy the application, or change it: `changes` are those of deployments, by name. They stay."""
        for name, change in changes.items():
            self._deployments.setdefault(name, {}).update(change)
        self.call("deploy", config=self._config())

    def _config(self) -> Config:
        deployments = [{"name": name, **options} for name, options in self._deployments.items()]
        return {
            "http_options": {"host": "127.0.0.1", "port": self.http_port},
            "proxy_location": "HeadOnly",
            "applications": [
                {
                    "name": "avatarforge",
                    "route_prefix": "/",
                    "import_path": "avatarforge.app:build",
                    "args": self._arguments,
                    "deployments": deployments,
                }
            ],
        }

    def replicas(self, deployment: str = "StableDiffusion") -> dict[str, str]:
        """Running replicas with their workers' names; none while Serve does not answer."""
        try:
            found: dict[str, str] = self.call("replicas", deployment=deployment)
        except HostError:
            return {}
        return found

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The first true value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, (
                f"not within {seconds:g} s: {what}; {self._told()}\n{self.log[-2000:]}"
            )
            time.sleep(0.2)
        return value

    def _told(self) -> str:
        try:
            return f"{self.call('application')}"
        except HostError as error:
            return str(error)

    def records(self) -> JobRepository:
        return JobRepository(open_engine(self.settings.database, self.settings.database_url))

    def crowd(self, photo: bytes, jobs: int, **options: Any) -> Crowd:
        return Crowd(self.url, photo, jobs, **options)

    def outcome(self, crowd: Crowd) -> Outcome:
        return Outcome(crowd, self.records(), FolderStorage(self.settings.storage_folder))

    def stop(self) -> None:
        children = psutil.Process(self._process.pid).children(recursive=True)
        try:
            self.call("stop")
            self._process.wait(30)
        except (HostError, subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=20)
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        shutil.rmtree(self._ray_folder, ignore_errors=True)


@contextmanager
def running_nodes(
    folder: Path, workers: int, *, variables: dict[str, str] | None = None, **arguments: Config
) -> Iterator[Nodes]:
    """A head and so many workers with two GPUs each (counted, not there), with the application ready.

    `arguments` are groups of settings. The data lie under `folder`, which all nodes reach.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nodes = Nodes(folder, variables or {}, arguments)
    try:
        (folder / "data").mkdir(exist_ok=True)
        upgrade(nodes.settings.database_url)
        nodes.start_head()
        for number in range(workers):
            nodes.add_worker(f"worker-{number}")
        nodes.call("start_serve", port=nodes.http_port)
        nodes.deploy()
        nodes.until(nodes.is_ready, 120, "the service is ready")
        yield nodes
    finally:
        nodes.stop()
