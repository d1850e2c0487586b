"""gRPC as its clients use it: a channel, grpcio's own health and reflection clients, the generated stubs."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from avatarforge.client import Client, JobRef
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from tests.acceptance.conftest import Installation

SERVICE = "avatarforge.v1.ProfilePhotoJobService"
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "2s",
    "maxBackoff": "8s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
"""What gRPC's guide advises (service config): another test may have killed the ingress just before."""


@pytest.fixture
def channel(installation: Installation) -> Iterator[grpc.Channel]:
    service_config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRIES}]})
    options = [("grpc.service_config", service_config), ("grpc.per_rpc_retry_buffer_size", 4 * 1024**2)]
    with grpc.insecure_channel(installation.service.grpc_address, options=options) as channel:
        yield channel


@pytest.fixture
def jobs(channel: grpc.Channel) -> ProfilePhotoJobServiceStub:
    return ProfilePhotoJobServiceStub(channel)


def submitted(
    jobs: ProfilePhotoJobServiceStub, customer_id: str, photo: bytes, **fields: Any
) -> pb.ProfilePhotoJobStatus:
    return jobs.SubmitPhoto(pb.SubmitPhotoRequest(customer_id=customer_id, photo=photo, **fields), timeout=60)


def test_a_job_is_kept_with_the_id_of_the_clients_request(
    installation: Installation, jobs: ProfilePhotoJobServiceStub, portrait: bytes
) -> None:
    accepted, call = jobs.SubmitPhoto.with_call(
        pb.SubmitPhotoRequest(customer_id="grace", photo=portrait), timeout=60
    )
    job = installation.records.find_job("grace", accepted.job_id)
    assert job is not None
    assert job.parameters.request_id == dict(call.trailing_metadata())["request_id"]
    # Its events would come between those of others.
    named = {"customer_id": "grace", "job_id": accepted.job_id}
    assert jobs.GetStatus(pb.JobStatusRequest(**named, wait_seconds=60), timeout=90).is_terminal


def test_a_photo_is_followed_to_its_avatar(
    jobs: ProfilePhotoJobServiceStub, forge: Client, portrait: bytes
) -> None:
    accepted = submitted(jobs, "grace", portrait, style="watercolor", steps=4, seed=7, format="webp")
    named = {"customer_id": "grace", "job_id": accepted.job_id}
    told = list(jobs.StreamStatus(pb.StatusStreamRequest(**named), timeout=60))
    last = told[-1]
    assert (last.status, last.is_terminal, last.seed) == (pb.PROCESSING_STATUS_DONE, True, 7)
    assert [message.seq for message in told] == sorted(message.seq for message in told)
    assert {message.job_id for message in told} == {accepted.job_id}
    assert jobs.GetStatus(pb.JobStatusRequest(**named, wait_seconds=60), timeout=90) == last
    assert forge.download(JobRef("grace", last.job_id)).media_type == "image/webp"

    # What was missed is told again, event by event.
    again = list(jobs.StreamStatus(pb.StatusStreamRequest(**named, after_seq=accepted.seq), timeout=60))
    assert again[-1] == last
    assert [message.seq for message in again] == list(range(accepted.seq + 1, last.seq + 1))


def test_a_waiting_client_hears_of_the_end(jobs: ProfilePhotoJobServiceStub, portrait: bytes) -> None:
    accepted = submitted(jobs, "henry", portrait, steps=1)
    request = pb.JobStatusRequest(customer_id="henry", job_id=accepted.job_id, wait_seconds=60)
    assert jobs.GetStatus(request, timeout=90).status == pb.PROCESSING_STATUS_DONE


def test_a_job_is_cancelled(jobs: ProfilePhotoJobServiceStub, portrait: bytes) -> None:
    accepted = submitted(jobs, "iris", portrait, steps=150)
    named = {"customer_id": "iris", "job_id": accepted.job_id}
    told = jobs.CancelJob(pb.CancelJobRequest(**named), timeout=30)
    assert (told.status, told.is_terminal) == (pb.PROCESSING_STATUS_CANCELLED, True)
    assert jobs.GetStatus(pb.JobStatusRequest(**named), timeout=30).status == told.status


def test_the_same_key_makes_no_second_job(jobs: ProfilePhotoJobServiceStub, portrait: bytes) -> None:
    request = pb.SubmitPhotoRequest(customer_id="judy", photo=portrait, steps=1)
    key = [("idempotency-key", "once")]
    first = jobs.SubmitPhoto(request, metadata=key, timeout=60)
    second, call = jobs.SubmitPhoto.with_call(request, metadata=key, timeout=60)
    assert first.job_id == second.job_id
    assert dict(call.trailing_metadata())["idempotent-replayed"] == "true"
    with pytest.raises(grpc.RpcError) as refused:
        jobs.SubmitPhoto(
            pb.SubmitPhotoRequest(customer_id="judy", photo=portrait, steps=2), metadata=key, timeout=60
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("service", ["", SERVICE])
def test_grpcios_health_client_finds_us_serving(channel: grpc.Channel, service: str) -> None:
    health, request = HealthStub(channel), HealthCheckRequest(service=service)
    assert health.Check(request, timeout=10).status == HealthCheckResponse.SERVING
    watch = health.Watch(request, timeout=30)
    assert next(watch).status == HealthCheckResponse.SERVING
    watch.cancel()


def test_a_client_that_knows_no_proto_file_calls_by_reflection(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    method = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name["GetStatus"]
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.unary_unary(f"/{SERVICE}/GetStatus", request.SerializeToString, answer.FromString)
    with pytest.raises(grpc.RpcError) as refused:
        call(request(customer_id="nobody", job_id="none"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "request_", "named"),
    [
        ("SubmitPhoto", pb.SubmitPhotoRequest(photo=b"x"), "customer_id is ''"),
        (
            "UploadPhoto",
            iter([pb.SubmitPhotoRequest(customer_id="refused", photo=bytes(1_000_000))] * 50),
            "The photo is larger than the limit of 20971520 bytes.",
        ),
        ("GetStatus", pb.JobStatusRequest(customer_id="refused"), "job_id is ''"),
        (
            "GetStatus",
            pb.JobStatusRequest(customer_id="refused", job_id="x", wait_seconds=-1),
            "wait_seconds is -1, but it must be a whole number from 0 to 60.",
        ),
        ("StreamStatus", pb.StatusStreamRequest(customer_id="refused", after_seq=-1), "after_seq is -1"),
        ("CancelJob", pb.CancelJobRequest(customer_id="refused"), "job_id is ''"),
    ],
    ids=["no customer", "50 MB", "no job", "negative wait", "negative seq", "nothing to cancel"],
)
def test_bad_input_is_refused_and_nothing_is_kept(
    installation: Installation, jobs: ProfilePhotoJobServiceStub, method: str, request_: Any, named: str
) -> None:
    call = getattr(jobs, method)
    with pytest.raises(grpc.RpcError) as refused:
        list(call(request_, timeout=60)) if method == "StreamStatus" else call(request_, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in refused.value.details()
    assert dict(refused.value.trailing_metadata())["avatarforge-code"]
    assert list(installation.storage.list("customers/refused/")) == []
    assert installation.records.find_customer("refused") is None


def test_a_key_of_ten_kilobytes_is_refused(
    installation: Installation, jobs: ProfilePhotoJobServiceStub, portrait: bytes
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        jobs.SubmitPhoto(
            pb.SubmitPhotoRequest(customer_id="keys", photo=portrait),
            metadata=[("idempotency-key", "k" * 10_240)],
            timeout=60,
        )
    # gRPC itself may refuse so much metadata first.
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "idempotency-key" in refused.value.details().lower()
    assert "keys" not in [summary.customer_id for summary in installation.records.list_customers(None, 1000)]
