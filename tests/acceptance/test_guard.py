"""One instance that anybody could reach, and what strangers get from it: from its ports, its logs, its
processes' command lines and its answers."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from avatarforge.ingress.grpc.serving import SERVICE
from tests.checkpoints import tiny_models
from tests.servers.avatarforge import AvatarForgeServer
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

SECRETS = {
    "STORAGE_SECRET_ACCESS_KEY": "marked-storage-secret",
    "WEBHOOK_SECRETS": "whsec_bWFya2VkLXdlYmhvb2stc2VjcmV0LXdlYmhvb2s=",
    "ACCESS_LINK_SECRETS": "marked-link-secret-of-more-than-32-characters",
    "REMOTE_URL": "http://127.0.0.1:9",
    "REMOTE_USERNAME": "forge",
    "REMOTE_PASSWORD": "marked-remote-password",
}
MARKS = [secret for name, secret in SECRETS.items() if name not in ("REMOTE_URL", "REMOTE_USERNAME")]

RAY_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.ObjectManagerService/Pull",
    # Takes pickles: whoever may call it runs code.
    "/ray.serve.ASGIService/HandleRequest",
)
"""What the GCS, raylets, workers, agents and Serve's replicas would do for those whom they know."""


@dataclass(frozen=True)
class Exposed:
    """The instance, a key for all of it, and another address of this machine than loopback."""

    service: AvatarForgeServer
    key: str
    address: str
    told: list[str] = field(default_factory=list)
    """Answers that strangers and friends were given."""

    @property
    def port(self) -> int:
        return int(self.service.url.rpartition(":")[2])

    @property
    def grpc_port(self) -> int:
        return int(self.service.grpc_address.rpartition(":")[2])

    def ask(self, path: str, **options: object) -> httpx.Response:
        answer = httpx.get(f"http://{self.address}:{self.port}{path}", timeout=30, trust_env=False, **options)  # type: ignore[arg-type]
        self.told.append(f"{answer.headers} {answer.text}")
        return answer

    def processes(self) -> list[psutil.Process]:
        return self.service.all_processes()


def other_address() -> str | None:
    addresses = (address for found in psutil.net_if_addrs().values() for address in found)
    for address in addresses:
        if address.family == socket.AF_INET and not address.address.startswith("127."):
            return address.address
    return None


def command(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    secrets = {f"AVATARFORGE_{name}": secret for name, secret in SECRETS.items()}
    environ = {**os.environ, **secrets, "AVATARFORGE_DATA_DIR": str(data_dir)}
    return subprocess.run(
        [sys.executable, "-m", "avatarforge", *words], env=environ, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    address = other_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    data_dir = tmp_path_factory.mktemp("guard") / "data"
    models = str(tiny_models())
    service = AvatarForgeServer(
        data_dir, HTTP_HOST="0.0.0.0", LOG_LEVEL="DEBUG", DIFFUSION_MODELS_DIR=models, **SECRETS
    )
    with pytest.raises(AssertionError, match="needs API keys") as refused:
        service.start()
    assert "--insecure" in str(refused.value)
    created = command(data_dir, "keys", "create", "ops", "--all-customers", "--admin")
    assert created.returncode == 0, created.stderr
    with service:
        yield Exposed(service, created.stdout.strip(), address)


def test_strangers_get_refusals_and_friends_get_answers(exposed: Exposed) -> None:
    assert exposed.ask("/healthz").status_code == 200
    assert exposed.ask("/customers/ana").status_code == 401
    assert exposed.ask("/metrics").status_code == 401
    friend = {"Authorization": f"Bearer {exposed.key}"}
    assert exposed.ask("/customers/ana", headers=friend).status_code == 404
    assert exposed.ask("/metrics", headers=friend).status_code == 200
    assert exposed.ask("/models", headers=friend).status_code == 200

    with grpc.insecure_channel(
        f"{exposed.address}:{exposed.grpc_port}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        health = HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
        assert health.status == HealthCheckResponse.SERVING
        jobs = ProfilePhotoJobServiceStub(channel)
        wanted = pb.JobStatusRequest(customer_id="ana", job_id="x")
        with pytest.raises(grpc.RpcError) as stranger:
            jobs.GetStatus(wanted, timeout=20)
        with pytest.raises(grpc.RpcError) as known:
            jobs.GetStatus(wanted, timeout=20, metadata=(("authorization", f"Bearer {exposed.key}"),))
    assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert known.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("call", "size", "code"),
    [
        (f"/{SERVICE.full_name}/SubmitPhoto", 60 * 1024 * 1024, grpc.StatusCode.UNAUTHENTICATED),
        (f"/{SERVICE.full_name}/GetStatus", 4_000_000, grpc.StatusCode.UNAUTHENTICATED),
        ("/grpc.health.v1.Health/Check", 60 * 1024 * 1024, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_strangers_fill_no_memory_by_grpc(
    exposed: Exposed, call: str, size: int, code: grpc.StatusCode
) -> None:
    """Neither with messages that are too large for anybody, nor with such as a friend may send."""
    [ingress] = [each for each in exposed.processes() if "Ingress" in " ".join(each.cmdline())]
    before = peak = ingress.memory_info().rss
    message = bytes(size)
    with ThreadPoolExecutor(25) as pool:
        told = [pool.submit(_code_of, exposed.address, exposed.grpc_port, call, message) for _ in range(50)]
        while not all(each.done() for each in told):
            peak = max(peak, ingress.memory_info().rss)
            time.sleep(0.01)

    assert {each.result() for each in told} == {code}
    assert peak - before <= 50 * 1024 * 1024


async def test_a_revoked_key_is_refused_within_seconds(exposed: Exposed) -> None:
    made = command(exposed.service.data_dir, "keys", "create", "short", "--customer", "ana").stdout.strip()
    friend = {"Authorization": f"Bearer {made}"}
    assert exposed.ask("/customers/ana", headers=friend).status_code == 404
    revoked = command(exposed.service.data_dir, "keys", "revoke", made.split("_")[1])
    assert revoked.returncode == 0, revoked.stderr
    await wait_until(lambda: exposed.ask("/customers/ana", headers=friend).status_code == 401, deadline=10)


def test_no_other_port_answers_from_outside_without_rays_token(exposed: Exposed) -> None:
    answered = {}
    for port in _listening(exposed) - {exposed.port, exposed.grpc_port}:
        if answer := _answer_of(exposed.address, port):
            answered[port] = answer

    assert answered == {}


def test_rays_token_is_its_own_and_readable_for_us_alone(exposed: Exposed) -> None:
    token = exposed.service.data_dir / "run" / "ray-token"
    assert token.stat().st_mode & 0o777 == 0o600
    # Ray's Python processes write their titles over their environment.
    servers = [process for process in exposed.processes() if process.name() in ("raylet", "gcs_server")]
    assert [process.environ().get("RAY_AUTH_MODE") for process in servers] == ["token", "token"]


def test_no_secret_is_told_by_answers_logs_or_command_lines(exposed: Exposed) -> None:
    exposed.ask("/customers/ana", headers={"Authorization": f"Bearer {exposed.key}"})
    for path in ("/readyz", "/openapi.json", "/nowhere", "/styles"):
        exposed.ask(path, headers={"Authorization": f"Bearer {exposed.key}"})
    token = (exposed.service.data_dir / "run" / "ray-token").read_text()
    shown = command(exposed.service.data_dir, "settings", "--json").stdout
    marks = [*MARKS, exposed.key, token]

    texts = {"answers": "\n".join(exposed.told), "settings": shown, "output": exposed.service.log}
    for process in exposed.processes():
        texts[f"command line of {process.name()}"] = " ".join(process.cmdline())
    logs = exposed.service.data_dir / "run" / "ray"
    for log in logs.rglob("*"):
        if log.is_file() and not log.is_symlink():
            texts[str(log)] = log.read_text(errors="replace")
    assert len(texts) > 10
    leaks = [(where, mark) for where, text in texts.items() for mark in marks if mark in text]

    assert leaks == []


def _listening(exposed: Exposed) -> set[int]:
    ports = set()
    for process in exposed.processes():
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                ports.add(connection.laddr.port)
    return ports


def _answer_of(address: str, port: int) -> str:
    """What a stranger is told there; nothing where the connection or the call is refused."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: stranger\r\nConnection: close\r\n\r\n")
            answer = connection.recv(4096)
    except ConnectionRefusedError:
        return ""
    if answer.startswith(b"HTTP/1.1 "):
        return "" if answer.startswith(b"HTTP/1.1 401") else answer[:80].decode(errors="replace")
    # Else it speaks gRPC.
    codes = [_code_of(address, port, call) for call in RAY_CALLS]
    refused = {grpc.StatusCode.UNAUTHENTICATED}
    # Each server knows some of the calls only.
    unknown = {grpc.StatusCode.UNIMPLEMENTED}
    return "" if refused <= set(codes) <= refused | unknown else ", ".join(map(str, codes))


def _code_of(address: str, port: int, call: str, message: bytes = b"") -> grpc.StatusCode:
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(f"{address}:{port}", options=options) as channel:
        try:
            channel.unary_unary(call)(message, timeout=30)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
