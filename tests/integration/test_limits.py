"""What is bounded: jobs, uploads, streams. A refusal leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from avatarforge.ingress.grpc import HealthMethods, JobMethods
from avatarforge.ingress.grpc.serving import add_job_service_to_server
from tests.integration.rest import a_jpeg, problem
from tests.integration.service import Service, running_service
from tests.waiting import wait_until

LIMITS = {
    "tracker": {"max_backlog": 4, "max_backlog_per_customer": 2, "lease_seconds": 60},
    "ingress": {"max_uploads": 2, "max_streams": 3, "max_streams_per_customer": 2},
}


class Methods(JobMethods, HealthMethods):
    """As the ingress has them."""


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path, **LIMITS) as service:
        yield service


@pytest_asyncio.fixture
async def stub(service: Service) -> AsyncIterator[ProfilePhotoJobServiceStub]:
    server = grpc.aio.server()
    add_job_service_to_server(Methods(service.photos, service.authorizer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ProfilePhotoJobServiceStub(channel)
    await server.stop(None)


async def busy(service: Service, customer_id: str, jobs: int) -> None:
    for _ in range(jobs):
        await service.running(customer_id)


async def test_a_customer_with_too_many_jobs_is_refused_and_nothing_stays(service: Service) -> None:
    await busy(service, "ana", 2)
    before = service.objects()
    refused = await service.post("ana", key="once more")
    assert problem(refused) | {"detail": "", "instance": ""} == {
        "type": "urn:avatarforge:problem:customer_backlog_full",
        "title": "Too many jobs of the customer have not ended yet",
        "status": 429,
        "code": "customer_backlog_full",
        "detail": "",
        "instance": "",
        "limit": 2,
        "retryAfter": 10,
    }
    assert refused.headers["retry-after"] == "10"
    assert service.objects() == before
    assert len(service.records.list_jobs("ana", None, 10)) == 2
    # The key is free: the same upload is accepted when there is room.
    service.replicas.tasks.clear()
    [_, oldest] = service.records.list_jobs("ana", None, 10)
    await service.command("cancel", oldest.job_id)
    assert (await service.post("ana", key="once more")).status_code == 202


async def test_others_are_accepted_until_all_jobs_are_too_many(service: Service) -> None:
    for customer_id in ("ana", "ana", "ben", "ben"):
        service.puppet()
        await service.submitted(customer_id)
    refused = await service.post("eva")
    assert (refused.status_code, problem(refused)["code"]) == (429, "backlog_full")
    assert (await service.client.get("/customers/eva")).status_code == 404


async def test_grpc_refuses_with_resource_exhausted(
    service: Service, stub: ProfilePhotoJobServiceStub
) -> None:
    await busy(service, "ana", 2)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.SubmitPhoto(pb.SubmitPhotoRequest(customer_id="ana", photo=a_jpeg()))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refusal.value.trailing_metadata() or ())
    assert trailing["avatarforge-code"] == "customer_backlog_full"
    assert len(service.records.list_jobs("ana", None, 10)) == 2


async def test_more_uploads_than_are_read_at_a_time_are_refused(service: Service) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        await finish.wait()
        yield a_jpeg() + b"\r\n--x--\r\n"

    finish = asyncio.Event()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    slow = [
        asyncio.create_task(service.client.post("/customers/ana", content=endless(), headers=headers))
        for _ in range(2)
    ]
    await wait_until(lambda: service.photos.upload_limit.in_use == 2)
    refused = await service.post("ben")
    assert (refused.status_code, problem(refused)["code"]) == (429, "too_many_uploads")
    assert refused.headers["retry-after"] == "1"
    finish.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [202, 202]
    assert (await service.post("ben")).status_code == 202
    assert service.photos.upload_limit.in_use == 0


async def test_photos_to_find_a_square_in_leave_room_for_uploads(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        await finish.wait()
        yield a_jpeg() + b"\r\n--x--\r\n"

    finish = asyncio.Event()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with running_service(tmp_path, ingress={"max_uploads": 9}) as service:
        slow = [
            asyncio.create_task(service.client.post("/crop", content=endless(), headers=headers))
            for _ in range(9)
        ]
        await wait_until(lambda: service.photos.upload_limit.in_use >= 8)
        refused = await service.client.post("/crop", files={"photo": ("a.jpg", a_jpeg())})
        accepted = await service.post("ben")
        finish.set()
        answers = sorted([answer.status_code for answer in await asyncio.gather(*slow)])
    assert (refused.status_code, problem(refused)["code"]) == (429, "too_many_crops")
    assert refused.headers["retry-after"] == "1"
    assert accepted.status_code == 202
    assert answers == [200] * 8 + [429]


async def test_streams_are_bounded_for_a_customer_and_in_all_on_both_channels(
    service: Service, stub: ProfilePhotoJobServiceStub
) -> None:
    async with AsyncExitStack() as stack:
        for customer_id in ("ana", "ana"):
            stream = await stack.enter_async_context(service.stream(customer_id))
            assert stream.response.status_code == 200
        assert await refusal(service, "ana") == (429, "too_many_streams_of_customer", "10")
        stream = await stack.enter_async_context(service.stream("ben"))
        assert stream.response.status_code == 200
        assert await refusal(service, "eva") == (429, "too_many_streams", "10")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await anext(aiter(stub.StreamStatus(pb.StatusStreamRequest(customer_id="eva"))))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def served() -> bool:
        async with service.stream("ana") as stream:
            return stream.response.status_code == 200

    await wait_until(served)


async def refusal(service: Service, customer_id: str) -> tuple[int, str, str]:
    answer: httpx.Response = await service.client.get(f"/customers/{customer_id}/photos/stream")
    return answer.status_code, problem(answer)["code"], answer.headers["retry-after"]
