"""Private clusters in processes of their own: side by side, stopped in order, and killed."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import avatarforge
from tests.servers.mariadb import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, and HAProxy is Linux's")

SCRIPT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
from avatarforge.cluster import LocalCluster

with LocalCluster(Path(sys.argv[1]), port=int(sys.argv[2])) as cluster:
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Echo:
        def __init__(self, name):
            self.name = name

        def __call__(self, request):
            return self.name

    cluster.wait_for_controller()
    serve.run_many([serve.RunTarget(Echo.bind(sys.argv[2]))], wait_for_applications_running=False)
    signal.pause()
"""


class Cluster:
    """A process that holds a `LocalCluster` with an application that answers with its port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self._log = (folder.parent / f"{folder.name}.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(self.port)],
            cwd=Path(avatarforge.__file__).parents[1],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=5, trust_env=False)
        self.members: list[psutil.Process] = []

    def answer(self) -> str | None:
        if self.process.poll() is not None:
            raise AssertionError(Path(self._log.name).read_text())
        try:
            answer = self._client.get("/")
        except httpx.TransportError:
            return None
        return answer.text if answer.status_code == httpx.codes.OK else None

    def remember_members(self) -> None:
        self.members = psutil.Process(self.process.pid).children(recursive=True)

    def survivors(self) -> list[str]:
        names = []
        for member in self.members:
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.is_running() and member.status() != psutil.STATUS_ZOMBIE:
                    names.append(" ".join(member.cmdline())[:100])
        return names

    def close(self) -> None:
        self._log.close()
        self._client.close()
        for process in self.members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Two clusters that start at the same time, one with a path that is too long for sockets."""
    clusters = Cluster(tmp_path / "short"), Cluster(tmp_path / ("long-" * 20))
    yield clusters
    for cluster in clusters:
        cluster.close()


async def test_two_clusters_start_side_by_side_and_end_apart(pair: tuple[Cluster, Cluster]) -> None:
    for cluster in pair:
        assert await wait_until(cluster.answer, deadline=150) == str(cluster.port)
        cluster.remember_members()
        assert any("haproxy" in name for name in cluster.survivors())
    stopped, killed = pair

    # In order: quickly, and nothing stays.
    began = time.monotonic()
    stopped.process.send_signal(signal.SIGTERM)
    assert await wait_until(lambda: stopped.process.poll() is not None, deadline=60)
    assert time.monotonic() - began < 20, "5 s on a machine that does nothing else"
    assert stopped.process.returncode == 0
    await wait_until(lambda: not stopped.survivors(), deadline=30)
    assert killed.answer() == str(killed.port), "the neighbour's end is not ours"

    # By `kill -9`: everything that holds a port or memory of ours goes at once, Ray's agents when they
    # notice that the rest is gone.
    killed.process.kill()
    await wait_until(lambda: not [name for name in killed.survivors() if "Agent" not in name], deadline=30)
    await wait_until(lambda: not killed.survivors(), deadline=150)
