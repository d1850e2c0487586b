"""`ray up cluster.yaml` with the image: Ray's own code finds on its machines all that it needs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private import commands, providers
from ray.autoscaler._private.commands import create_or_update_cluster, exec_cluster, rsync
from ray.autoscaler._private.updater import NodeUpdaterThread
from ray.autoscaler._private.util import with_head_node_ip

from tests.chaos.conftest import IS_LONG
from tests.servers.cloud import Dockerfile, Machine, Provider, make_base, write_cluster_file
from tests.terminal import TREE

HAS_NAMESPACES = os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"]).returncode == 0
pytestmark = [
    pytest.mark.skipif(not HAS_NAMESPACES, reason="only root may make mount namespaces"),
    # Ray leaves its copy of the configuration open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STARTED = {"RAY_AUTH_MODE": "token", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_ROTATION_BACKUP_COUNT": "4"}


@pytest.fixture
def cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    name = f"test-{os.getpid()}"
    monkeypatch.setitem(providers._NODE_PROVIDERS, "aws", lambda _: Provider)
    # It says what AWS has chosen.
    monkeypatch.setattr(commands, "try_logging_config", lambda _: None)
    monkeypatch.setattr(Provider, "nodes", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield write_cluster_file(tmp_path, name)
    # Where Ray puts what containers are to get.
    shutil.rmtree(f"/tmp/ray_tmp_mount/{name}", ignore_errors=True)


@pytest.fixture(params=["host", "tree"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file tree below the image's own files: this machine's, or a Debian with its packages alone."""
    if request.param == "host":
        return Path("/")
    if not IS_LONG:
        pytest.skip("`make chaos` makes a tree")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    return make_base(tmp_path / "tree")


def reach(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)


def start_worker(config_file: Path) -> None:
    """As the autoscaler on the head does it."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    provider = Provider(config["provider"], config["cluster_name"])
    provider.create_node({}, {"kind": "worker"}, 1)
    [node_id] = provider.non_terminated_nodes({"kind": "worker"})
    updater = NodeUpdaterThread(
        node_id=node_id,
        provider_config=config["provider"],
        provider=provider,
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        file_mounts={},
        initialization_commands=[],
        setup_commands=[],
        ray_start_commands=with_head_node_ip(config["worker_start_ray_commands"], "10.0.0.1"),
        runtime_hash="0",
        file_mounts_contents_hash="0",
        is_head_node=False,
        docker_config=config["docker"],
    )
    updater.start()
    updater.join()
    assert updater.exitcode == 0


def test_head_and_worker_start_and_their_commands_are_found(
    cluster_file: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(cluster_file)
    head = Machine(tmp_path / "head", base)
    reach(head, monkeypatch)
    create_or_update_cluster(file, None, None, False, False, True, None, no_config_cache=True)
    # As the head of cluster.yaml says.
    rsync(file, str(TREE / "serve_config.yaml"), "~/serve_config.yaml", None, False, no_config_cache=True)
    exec_cluster(file, cmd="avatarforge db upgrade && serve deploy serve_config.yaml", no_config_cache=True)

    if base != Path("/"):
        # By which the autoscaler in the head's container starts workers, and probes and reports work.
        exec_cluster(file, cmd="ssh -V && rsync -V && ps && wget -V && gcc --version", no_config_cache=True)

    [stop, start, upgrade, deploy] = head.calls()
    assert stop[0] == ["ray", "stop"]
    assert start[0][:4] == ["ray", "start", "--head", "--port=6379"]
    assert "--autoscaling-config=/home/avatarforge/ray_bootstrap_config.yaml" in start[0]
    assert start[1].items() >= STARTED.items()
    assert upgrade[0] == ["avatarforge", "db", "upgrade"]
    assert deploy[0] == ["serve", "deploy", "serve_config.yaml"]
    for name in ("ray_bootstrap_config.yaml", "ray_bootstrap_key.pem", "serve_config.yaml"):
        assert (head.home / name).stat().st_uid == 1000
    assert (head.home / "serve_config.yaml").read_bytes() == (TREE / "serve_config.yaml").read_bytes()
    [run] = [call for call in head.docker_calls if call.startswith("run ")]
    assert "--env-file=/home/ubuntu/avatarforge.env" in run

    worker = Machine(tmp_path / "worker", base)
    reach(worker, monkeypatch)
    start_worker(cluster_file)
    [stop, start] = worker.calls()
    assert start[0] == ["ray", "start", "--address=10.0.0.1:6379"]
    assert start[1].items() >= STARTED.items()


def test_the_image_has_what_the_head_calls_to_start_its_workers() -> None:
    """The autoscaler runs in the head's container, and reaches the machines of workers from there."""
    assert {"openssh-client", "rsync"} <= Dockerfile().packages
