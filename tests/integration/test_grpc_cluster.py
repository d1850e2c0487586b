"""gRPC through Ray Serve and HAProxy: what lies between a client and the ingress' methods."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

import avatarforge
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from tests.servers.mariadb import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is Linux's")

CUT_SECONDS = 20
"""Until a method hears of its client's end, over three busy processes. By itself no method ends before 60."""

SCRIPT = """
import asyncio, signal, sys, time
from contextlib import asynccontextmanager
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
from avatarforge.cluster import LocalCluster

folder = Path(sys.argv[1])
with LocalCluster(folder / "data", port=int(sys.argv[2]), grpc_port=int(sys.argv[3])) as cluster:
    from fastapi import FastAPI
    from ray import serve
    from avatarforge.domain.errors import JobNotFound
    from avatarforge.ingress.grpc import HealthMethods, JobMethods
    from avatarforge.ingress.health import HealthChecks
    from avatarforge.ingress.live.events import Erased
    from avatarforge.access.authorizer import Authorizer
    from avatarforge.ingress.metrics_endpoint import OpenStreams
    from avatarforge.settings import AccessSettings, Settings
    from avatarforge.telemetry.registry import MetricsRegistry

    class Photos:
        settings = Settings()
        health = HealthChecks({}, feed_lag=lambda: 0.0)

        def __init__(self):
            self.registry = MetricsRegistry()
            self.open_streams = OpenStreams(self.registry)
            self.streams = self

        async def status(self, customer_id, job_id, wait_seconds, after):
            try:
                await asyncio.sleep(wait_seconds)
            finally:
                (folder / f"closed-{customer_id}").touch()
            raise JobNotFound(customer_id, job_id)

        async def follow(self, customer_id, job_id, after, *, heartbeat_seconds):
            if customer_id == "nobody":
                raise JobNotFound(customer_id, "x")
            try:
                yield Erased(seq=1, customer_id=customer_id, job_id="x")
                while customer_id == "loud":
                    yield Erased(seq=2, customer_id=customer_id, job_id="x" * 10_000)
                    with (folder / "taken").open("a") as taken:
                        taken.write(".")
                    await asyncio.sleep(0)
                await asyncio.sleep(3600)
            finally:
                (folder / f"closed-{customer_id}").touch()

    @serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
    @serve.ingress()
    class Methods(JobMethods, HealthMethods):
        def __init__(self):
            authorizer = Authorizer(AccessSettings(), None, required=False)
            super().__init__(Photos(), authorizer)

        def __serve_build_asgi_app__(self):
            return FastAPI()

    cluster.wait_for_controller()
    serve.run_many([serve.RunTarget(Methods.bind())], wait_for_applications_running=False)
    signal.pause()
"""


class Carried:
    """A cluster whose methods do nothing but wait, and write down when they were closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        ports = [str(free_port()), self.address.rpartition(":")[2]]
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), *ports],
            cwd=Path(avatarforge.__file__).parents[1],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def serves(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text())
        with self.channel() as channel:
            try:
                health = HealthStub(channel).Check(HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
        return bool(health.status == HealthCheckResponse.SERVING)

    def closed(self, customer_id: str) -> bool:
        return (self.folder / f"closed-{customer_id}").exists()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self._log.close()


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carried]:
    carried = Carried(tmp_path_factory.mktemp("grpc"))
    try:
        deadline = time.monotonic() + 150
        while not carried.serves():
            assert time.monotonic() < deadline, (carried.folder / "log").read_text()
            time.sleep(0.1)
        yield carried
    finally:
        carried.close()


@pytest.fixture
def channel(carried: Carried) -> Iterator[grpc.Channel]:
    with carried.channel() as channel:
        yield channel


def stream(channel: grpc.Channel, customer_id: str) -> Any:
    """A stream that has begun."""
    call = ProfilePhotoJobServiceStub(channel).StreamStatus(pb.StatusStreamRequest(customer_id=customer_id))
    assert next(call).seq == 1
    return call


@pytest.mark.parametrize("way", ["cancelled", "disconnected"])
async def test_the_generator_of_a_stream_that_is_cut_is_closed(carried: Carried, way: str) -> None:
    channel = carried.channel()
    call = stream(channel, way)
    call.cancel() if way == "cancelled" else channel.close()
    await wait_until(lambda: carried.closed(way), deadline=CUT_SECONDS)
    channel.close()


async def test_a_waiting_call_whose_client_gives_up_is_ended(carried: Carried, channel: grpc.Channel) -> None:
    request = pb.JobStatusRequest(customer_id="impatient", job_id="x", wait_seconds=60)
    with pytest.raises(grpc.RpcError) as given_up:
        ProfilePhotoJobServiceStub(channel).GetStatus(request, timeout=0.5)
    assert given_up.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until(lambda: carried.closed("impatient"), deadline=CUT_SECONDS)


async def test_clients_that_do_not_read_their_streams_stop_nobody_else(carried: Carried) -> None:
    loud = [stream(carried.channel(), "loud") for _ in range(3)]
    taken = carried.folder / "taken"

    def pressing() -> bool:
        """Every buffer on the way is full, or more is on the way than buffers are meant for: 30 MB."""
        stat = taken.stat() if taken.exists() else None
        return stat is not None and (stat.st_size > 3000 or time.time() - stat.st_mtime > 0.5)

    await wait_until(pressing, deadline=30)
    for number in range(10):
        with carried.channel() as channel:
            call = ProfilePhotoJobServiceStub(channel).StreamStatus(
                pb.StatusStreamRequest(customer_id=f"quiet-{number}"), timeout=CUT_SECONDS
            )
            assert next(call).seq == 1
    for call in loud:
        call.cancel()


def test_a_refused_call_carries_status_sentence_and_code(channel: grpc.Channel) -> None:
    jobs = ProfilePhotoJobServiceStub(channel)
    with pytest.raises(grpc.RpcError) as unary:
        jobs.GetStatus(pb.JobStatusRequest(customer_id="ana", job_id="y"))
    with pytest.raises(grpc.RpcError) as streamed:
        list(jobs.StreamStatus(pb.StatusStreamRequest(customer_id="nobody")))
    for refused, job_id in ((unary.value, "y"), (streamed.value, "x")):
        assert refused.code() is grpc.StatusCode.NOT_FOUND
        assert refused.details().endswith(f"has no job with the id '{job_id}'.")
        assert dict(refused.trailing_metadata())["avatarforge-code"] == "job_not_found"


def test_reflection_shows_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"avatarforge.v1.ProfilePhotoJobService", "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("avatarforge.v1.ProfilePhotoJobService")
    assert list(service.methods_by_name) == [
        "SubmitPhoto",
        "UploadPhoto",
        "GetStatus",
        "StreamStatus",
        "CancelJob",
        "KeepImage",
    ]


def test_clients_that_ask_for_reflection_v1_find_services_and_methods(channel: grpc.Channel) -> None:
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    symbols = (
        "avatarforge.v1.ProfilePhotoJobService",
        "avatarforge.v1.ProfilePhotoJobService.GetStatus",
        "grpc.reflection.v1.ServerReflection",
        "avatarforge.v1.Nothing.Such",
    )
    requests = [ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    listed, *found = ask(iter([ServerReflectionRequest(list_services=""), *requests]))

    assert {service.name for service in listed.list_services_response.service} == {
        "avatarforge.v1.ProfilePhotoJobService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert [answer.WhichOneof("message_response") for answer in found] == [
        *3 * ["file_descriptor_response"],
        "error_response",
    ]


def test_serves_own_servers_listen_on_the_loopback_interface_only(carried: Carried) -> None:
    ports_of_ray = 32768  # It takes its own from there on, with a token of the cluster's to guard them.
    listening = {
        connection.laddr
        for process in psutil.Process(carried.process.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port < ports_of_ray
    }
    assert len(listening) >= 4
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
