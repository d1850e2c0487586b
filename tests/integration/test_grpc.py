"""gRPC over a real record, a real folder and grpcio's own server: what each call does."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob, new_job_id
from avatarforge.domain.status import EventKind
from avatarforge.embedded import MESSAGE_BYTES
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from avatarforge.ingress.grpc import HealthMethods, JobMethods, jobs, serving
from avatarforge.ingress.grpc.messages import job_status
from avatarforge.ingress.grpc.serving import SERVICE, add_health_service_to_server, add_job_service_to_server
from avatarforge.ingress.live.events import Erased
from avatarforge.ingress.upload import multipart
from avatarforge.messages import LiveJob
from tests.events import subscriber_count
from tests.factories import a_job, an_outcome
from tests.integration.rest import Rest, a_jpeg, finished, progressed, running_rest
from tests.waiting import wait_until


class Methods(JobMethods, HealthMethods):
    """As the ingress has them."""


@dataclass(frozen=True)
class Grpc:
    rest: Rest
    jobs: ProfilePhotoJobServiceStub
    health: HealthStub
    channel: grpc.aio.Channel
    methods: Methods
    socket: Path
    """The server's second address."""

    async def submitted(self, customer_id: str = "ana", **fields: Any) -> pb.ProfilePhotoJobStatus:
        return await self.jobs.SubmitPhoto(
            pb.SubmitPhotoRequest(customer_id=customer_id, photo=a_jpeg(), **fields)
        )

    def job(self, status: pb.ProfilePhotoJobStatus) -> ProfilePhotoJob:
        job = self.rest.records.find_job(status.customer_id, status.job_id)
        assert job is not None
        return job


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Grpc]:
    async with running_grpc(tmp_path) as api:
        yield api


@asynccontextmanager
async def running_grpc(folder: Path, **settings: Any) -> AsyncIterator[Grpc]:
    async with running_rest(folder, ingress={"stream_buffer": 3}, **settings) as rest:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
        methods = Methods(rest.photos, rest.authorizer)
        add_job_service_to_server(methods, server)
        add_health_service_to_server(methods, server)
        port = server.add_insecure_port("127.0.0.1:0")
        socket = folder / "grpc"
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stubs = ProfilePhotoJobServiceStub(channel), HealthStub(channel)
            yield Grpc(rest, *stubs, channel, methods, socket)
        await server.stop(None)


async def drained(stream: Any) -> list[pb.ProfilePhotoJobStatus]:
    messages = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def refused(call: Any) -> tuple[str, str, str]:
    """Status, code and sentence of a call that is not answered."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await (drained(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    trailing = dict(error.value.trailing_metadata())
    return error.value.code().name, str(trailing.get("avatarforge-code")), error.value.details() or ""


async def test_a_photo_becomes_a_job_that_rest_knows_too(api: Grpc) -> None:
    accepted = await api.submitted(steps=12, style="neon", seed=5, format="webp", priority=2)
    job = api.job(accepted)
    for estimate in ("queue_position", "eta_seconds"):
        accepted.ClearField(estimate)
    assert accepted == job_status(LiveJob(job=job))
    assert (job.parameters.steps, job.parameters.style, job.parameters.seed, job.priority) == (
        12,
        "neon",
        5,
        2,
    )
    assert api.rest.storage.get(job.original.key)
    told = (await api.rest.client.get(f"/customers/ana/photos/{job.job_id}/status")).json()
    assert (told["jobId"], told["seq"], told["status"]) == (accepted.job_id, accepted.seq, "PENDING")


async def test_below_a_proxys_path_addresses_begin_with_it(tmp_path: Path) -> None:
    async with running_grpc(tmp_path, http={"root_path": "/avatars"}) as api:
        accepted = await api.submitted()
        names = {"customer_id": "ana", "job_id": accepted.job_id}
        stream = api.jobs.StreamStatus(pb.StatusStreamRequest(**names))
        followed = [await stream.read()]
        await finished(api.rest, api.job(accepted))
        followed += await drained(stream)
        told = await api.jobs.GetStatus(pb.JobStatusRequest(**names))
    address = f"/avatars/customers/ana/photos/{accepted.job_id}"
    assert {status.original_url for status in (accepted, told, *followed)} == {f"{address}/original"}
    assert {status.generated_url for status in (told, followed[-1])} == {f"{address}/generated"}


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"customer_id": ""}, "invalid_customer_id", "customer_id is ''"),
        ({"customer_id": "a/b"}, "invalid_customer_id", "customer_id is 'a/b'"),
        ({"photo": b""}, "photo_empty", "0 bytes"),
        ({"photo": b"hello"}, "photo_not_an_image", "Send a JPEG"),
        ({"guidance": float("nan")}, "invalid_request", "guidance is 'nan'"),
        ({"steps": 2**31 - 1}, "invalid_request", "steps is '2147483647'"),
        ({"callback_url": "nowhere"}, "invalid_request", "callback_url is 'nowhere'"),
        ({"format": "bmp"}, "invalid_request", "format is 'bmp', but it must be one of png, webp, jpeg"),
        ({"callback_url": "file:///etc/passwd"}, "invalid_request", "callback_url is 'file:///etc/passwd'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_wrong_photo_or_field_is_refused_and_nothing_is_kept(
    api: Grpc, fields: dict[str, Any], code: str, named: str
) -> None:
    request = pb.SubmitPhotoRequest(**{"customer_id": "ana", "photo": a_jpeg(), **fields})
    status, told, details = await refused(api.jobs.SubmitPhoto(request))
    assert (status, told) == ("INVALID_ARGUMENT", code)
    assert named in details
    assert api.rest.kept() == []


def pieces(photo: bytes, size: int, **fields: Any) -> Iterator[pb.SubmitPhotoRequest]:
    """The messages of `UploadPhoto`."""
    request = pb.SubmitPhotoRequest(customer_id="ana", **fields)
    for start in range(0, len(photo), size):
        request.photo = photo[start : start + size]
        yield request
        request = pb.SubmitPhotoRequest()


async def test_a_photo_in_pieces_is_the_same_upload(api: Grpc) -> None:
    whole = api.job(await api.submitted(steps=12, seed=5))
    accepted = await api.jobs.UploadPhoto(pieces(a_jpeg(), 100, steps=12, seed=5))
    assert api.job(accepted).parameters == whole.parameters
    assert api.job(accepted).original.sha256 == whole.original.sha256


async def test_a_photo_larger_than_a_message_comes_in_pieces_only(api: Grpc) -> None:
    photo = a_jpeg() + bytes(MESSAGE_BYTES)
    status, _, details = await refused(
        api.jobs.SubmitPhoto(pb.SubmitPhotoRequest(customer_id="ana", photo=photo))
    )
    assert status == "RESOURCE_EXHAUSTED"
    assert f"larger than max ({len(photo) + 10} vs. {MESSAGE_BYTES})" in details
    accepted = await api.jobs.UploadPhoto(pieces(photo, 1 << 16))
    assert api.rest.storage.get(api.job(accepted).original.key)


async def test_an_upload_in_pieces_ends_where_it_becomes_too_large(api: Grpc) -> None:
    limit, sent = api.rest.photos.settings.upload.max_bytes, 0

    def endless() -> Iterator[pb.SubmitPhotoRequest]:
        nonlocal sent
        for piece in pieces(bytes(1 << 30), 1 << 20):
            sent += len(piece.photo)
            yield piece

    status, code, details = await refused(api.jobs.UploadPhoto(endless()))
    assert (status, code) == ("INVALID_ARGUMENT", "photo_too_large")
    assert f"larger than the limit of {limit} bytes" in details
    assert sent < 3 * limit
    assert list(api.rest.photos.upload_folder.glob("*")) == []
    assert api.rest.kept() == []


async def test_an_upload_whose_client_falls_silent_is_given_up(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "IDLE_TIMEOUT_SECONDS", 0.2)
    call = api.jobs.UploadPhoto()
    await call.write(pb.SubmitPhotoRequest(customer_id="ana", photo=b"begins"))
    status, code, details = await refused(call)
    assert (status, code) == ("INVALID_ARGUMENT", "malformed_upload")
    assert "nothing came for 0.2 seconds" in details
    assert api.rest.photos.upload_limit.in_use == 0


async def test_a_message_that_does_not_come_is_not_waited_for(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "READ_TIMEOUT_SECONDS", 0.2)
    call = api.channel.stream_unary(f"/{SERVICE.full_name}/GetStatus")()
    status, code, details = await refused(call)
    assert (status, code) == ("INVALID_ARGUMENT", "invalid_request")
    assert "comes within 0.2 seconds" in details


async def test_what_cannot_be_promised_is_unavailable(api: Grpc) -> None:
    api.rest.tracker.refusal = DatabaseUnavailable("can't connect to db-7.internal")
    call = api.jobs.SubmitPhoto(pb.SubmitPhotoRequest(customer_id="ana", photo=a_jpeg()))
    status, code, details = await refused(call)
    assert (status, code) == ("UNAVAILABLE", "database_unavailable")
    assert "db-7" not in details
    assert api.rest.kept() == []


async def test_a_waiting_call_hears_of_the_end_at_once(api: Grpc) -> None:
    accepted = await api.submitted()
    waiting = api.jobs.GetStatus(
        pb.JobStatusRequest(customer_id="ana", job_id=accepted.job_id, wait_seconds=30)
    )
    done = await finished(api.rest, api.job(accepted))
    assert await asyncio.wait_for(waiting, 5) == job_status(LiveJob(job=done))


async def test_a_call_that_waits_for_a_change_hears_of_the_next_one(api: Grpc) -> None:
    accepted = await api.submitted()
    request = pb.JobStatusRequest(
        customer_id="ana", job_id=accepted.job_id, wait_seconds=30, after_seq=accepted.seq
    )
    waiting = api.jobs.GetStatus(request)
    job = api.job(accepted)
    started = api.rest.tracker.commit(job.start(job.created_at), EventKind.STARTED)
    told = await asyncio.wait_for(waiting, 5)
    assert (told.status, told.seq) == (pb.PROCESSING_STATUS_PROCESSING, started.seq)


@pytest.mark.parametrize(
    ("method", "request_", "status", "named"),
    [
        ("GetStatus", pb.JobStatusRequest(job_id="x"), "INVALID_ARGUMENT", "customer_id is ''"),
        ("GetStatus", pb.JobStatusRequest(customer_id="ana"), "INVALID_ARGUMENT", "job_id is ''"),
        ("GetStatus", pb.JobStatusRequest(customer_id="ana", job_id="x"), "NOT_FOUND", "the id 'x'"),
        (
            "GetStatus",
            pb.JobStatusRequest(customer_id="ana", job_id=new_job_id(), wait_seconds=-1),
            "INVALID_ARGUMENT",
            "wait_seconds is -1, but it must be a whole number from 0 to 60.",
        ),
        ("StreamStatus", pb.StatusStreamRequest(), "INVALID_ARGUMENT", "customer_id is ''"),
        ("StreamStatus", pb.StatusStreamRequest(customer_id="ana", job_id=""), "INVALID_ARGUMENT", "job_id"),
        ("StreamStatus", pb.StatusStreamRequest(customer_id="ana", job_id="x"), "NOT_FOUND", "the id 'x'"),
        (
            "StreamStatus",
            pb.StatusStreamRequest(customer_id="ana", after_seq=-5),
            "INVALID_ARGUMENT",
            "after_seq is -5",
        ),
        (
            "StreamStatus",
            pb.StatusStreamRequest(customer_id="ana", after_seq=99),
            "INVALID_ARGUMENT",
            "is 99",
        ),
        ("KeepImage", pb.KeepImageRequest(customer_id="ana"), "INVALID_ARGUMENT", "job_id is ''"),
        ("KeepImage", pb.KeepImageRequest(customer_id="", job_id="x"), "INVALID_ARGUMENT", "is ''"),
        (
            "KeepImage",
            pb.KeepImageRequest(customer_id="ana", job_id="x"),
            "INVALID_ARGUMENT",
            "index is None, but it must be the index of an image",
        ),
        ("KeepImage", pb.KeepImageRequest(customer_id="ana", job_id="x", index=0), "NOT_FOUND", "'x'"),
        ("CancelJob", pb.CancelJobRequest(customer_id="ana"), "INVALID_ARGUMENT", "job_id is ''"),
        ("CancelJob", pb.CancelJobRequest(customer_id="", job_id="x"), "INVALID_ARGUMENT", "is ''"),
    ],
)
async def test_a_wrong_request_is_refused_with_what_would_be_right(
    api: Grpc, method: str, request_: Any, status: str, named: str
) -> None:
    told, code, details = await refused(getattr(api.jobs, method)(request_))
    assert told == status
    assert code in ("invalid_request", "invalid_customer_id", "job_not_found")
    assert named in details


async def test_a_stream_tells_a_jobs_life_and_ends_with_it(api: Grpc) -> None:
    accepted = await api.submitted()
    job = api.job(accepted)
    stream = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana", job_id=job.job_id))
    first = await stream.read()
    started = api.rest.tracker.commit(job.start(job.created_at), EventKind.STARTED)
    second = await stream.read()
    progressed(api.rest, started, 3, 10)
    step = await stream.read()
    done = api.rest.tracker.commit(started.complete(an_outcome(), started.created_at), EventKind.DONE)
    [last] = await drained(stream)
    assert [first.seq, second.seq, step.seq] == [job.seq, started.seq, started.seq]
    assert (step.progress.step, step.progress.total_steps) == (3, 10)
    assert last == job_status(LiveJob(job=done))
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_has_previews_where_they_are_asked_for(api: Grpc) -> None:
    job = api.job(await api.submitted())
    request = pb.StatusStreamRequest(customer_id="ana", job_id=job.job_id)
    asked = pb.StatusStreamRequest(customer_id="ana", job_id=job.job_id, previews=True)
    plain, pictured = (api.jobs.StreamStatus(each) for each in (request, asked))
    await plain.read()
    await pictured.read()
    progress = GenerationProgress(step=1, total_steps=4, preview=b"picture", preview_index=2)
    api.rest.tracker.feed.on_progress(job.job_id, progress)
    without, with_picture = await plain.read(), await pictured.read()

    assert with_picture.preview == pb.Preview(index=2, picture=b"picture")
    with_picture.ClearField("preview")
    assert without == with_picture
    for stream in (plain, pictured):
        stream.cancel()


async def test_a_client_that_was_away_misses_nothing(api: Grpc) -> None:
    idle = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana"))
    begins = await idle.read()
    assert begins == pb.ProfilePhotoJobStatus(customer_id="ana", seq=begins.seq)
    idle.cancel()
    done = await finished(api.rest, api.job(await api.submitted()))
    stream = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana", after_seq=begins.seq))
    told = []
    while not told or not told[-1].is_terminal:
        told.append(await asyncio.wait_for(stream.read(), 5))
    assert [message.job_id for message in told] == [done.job_id] * len(told)
    assert [message.seq for message in told] == list(range(begins.seq + 1, done.seq + 1))


async def test_a_client_that_reads_too_slowly_is_told_so_and_resumes(api: Grpc) -> None:
    stream = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana"))
    begins = await stream.read()
    # At once, so that all of them wait for the stream: more than its buffer takes.
    committed = [api.rest.tracker.commit(a_job(), EventKind.SUBMITTED) for _ in range(5)]
    status, code, details = await refused(stream)
    assert (status, code) == ("RESOURCE_EXHAUSTED", "overflow")
    assert f"go on after seq {begins.seq}." in details
    again = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana", after_seq=begins.seq))
    assert [(await again.read()).seq for _ in committed] == [job.seq for job in committed]
    again.cancel()


async def test_a_stream_that_is_cut_is_closed(api: Grpc) -> None:
    streams = [api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana")) for _ in range(3)]
    for stream in streams:
        await stream.read()
    assert subscriber_count(api.rest.live) == 3
    for stream in streams:
        stream.cancel()
    # Long before a heartbeat would find out.
    await wait_until(lambda: subscriber_count(api.rest.live) == 0)


async def test_a_client_that_does_not_read_its_stream_is_not_kept_for_ever(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = asyncio.Event()

    async def endless(*_: Any, **__: Any) -> AsyncIterator[Erased]:
        try:
            while True:
                yield Erased(seq=1, customer_id="ana", job_id="x" * 100_000)
        finally:
            closed.set()

    monkeypatch.setattr(api.rest.photos.streams, "follow", endless)
    life = api.rest.settings.ingress.max_stream_seconds
    monkeypatch.setattr(jobs, "CLOSE_TIMEOUT_SECONDS", 0.5 - life)
    stream = api.jobs.StreamStatus(pb.StatusStreamRequest(customer_id="ana"))
    await stream.read()
    await asyncio.wait_for(closed.wait(), 5)
    stream.cancel()


async def test_an_unexpected_error_is_told_without_its_trace(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> LiveJob:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(api.rest.photos, "status", broken)
    call = api.jobs.GetStatus(pb.JobStatusRequest(customer_id="ana", job_id=new_job_id()))
    status, code, details = await refused(call)
    assert (status, code) == ("INTERNAL", "internal_error")
    assert "secret" not in details


async def test_health_is_readiness(api: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("", SERVICE.full_name):
        assert (await api.health.Check(HealthCheckRequest(service=service))).status == 1
    listed = await api.health.List(HealthListRequest())
    assert {name: health.status for name, health in listed.statuses.items()} == {"": 1, SERVICE.full_name: 1}
    status, code, _ = await refused(api.health.Check(HealthCheckRequest(service="other")))
    assert (status, code) == ("NOT_FOUND", "service_not_found")
    unknown = api.health.Watch(HealthCheckRequest(service="other"))
    assert (await unknown.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()

    watch = api.health.Watch(HealthCheckRequest(service=SERVICE.full_name))
    assert (await watch.read()).status == HealthCheckResponse.SERVING
    ready = await api.rest.photos.health.readiness()

    async def unready() -> Any:
        return ready.model_copy(update={"ready": False})

    monkeypatch.setattr(api.rest.photos.health, "readiness", unready)
    assert (await asyncio.wait_for(watch.read(), 5)).status == HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_callers_without_a_key_who_send_nothing_keep_no_other_host_out(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "UNKNOWN_READ_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(serving, "UNKNOWN_QUEUE_TIMEOUT_SECONDS", 0.1)
    check = api.channel.stream_unary("/grpc.health.v1.Health/Check")
    silent = [check() for _ in range(serving.MAX_UNKNOWN_READS_OF_PEER)]

    def is_full() -> bool:
        return any(places.locked() for places in api.methods._callers._places_of_peers.values())

    await wait_until(is_full)
    asked = HealthCheckRequest(service="")
    assert (await refused(api.health.Check(asked)))[:2] == ("RESOURCE_EXHAUSTED", "too_many_calls")
    async with grpc.aio.insecure_channel(f"unix:{api.socket}") as channel:
        assert (await HealthStub(channel).Check(asked)).status == HealthCheckResponse.SERVING
    for call in silent:
        call.cancel()
    await wait_until(lambda: not is_full())
    assert (await api.health.Check(asked)).status == HealthCheckResponse.SERVING


async def test_callers_without_a_key_lose_their_place_if_they_send_nothing_or_much(
    api: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = api.channel.stream_unary("/grpc.health.v1.Health/Check")()
    assert (await refused(silent))[:2] == ("INVALID_ARGUMENT", "invalid_request")
    monkeypatch.setattr(serving, "UNKNOWN_READ_TIMEOUT_SECONDS", 60.0)
    large = HealthCheckRequest(service="x" * serving.MAX_UNKNOWN_BYTES)
    for answer in (api.health.Check(large), api.health.Watch(large)):
        assert (await refused(answer))[:2] == ("INVALID_ARGUMENT", "invalid_request")


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_a_message_that_cannot_be_read_is_an_invalid_argument(api: Grpc, method: str) -> None:
    described, garbage = SERVICE.methods_by_name[method], b"\x00 is no field"
    calls = api.channel.unary_stream if described.server_streaming else api.channel.unary_unary
    call = calls(f"/{SERVICE.full_name}/{method}")(garbage)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (call.read() if described.server_streaming else call)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wanted = described.input_type.full_name
    assert refused.value.details() == f"The message is '{len(garbage)} bytes', but it must be a {wanted}."
