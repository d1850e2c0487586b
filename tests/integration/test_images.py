"""Several images of one photo: asked for, looked at and chosen over REST and gRPC."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import httpx
import pytest

from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from tests.factories import an_outcome
from tests.integration.rest import Rest, a_jpeg, problem, published
from tests.integration.service import Service, serving_grpc


async def test_an_image_can_be_had_as_soon_as_it_is_there(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg(), variants="3")
    await published(rest, job, b"first", b"second")
    path = f"/customers/ana/photos/{job.job_id}"

    told = (await rest.client.get(f"{path}/status")).json()
    shown = [await rest.client.get(image["generatedUrl"]) for image in told["images"]]

    assert [answer.content for answer in shown] == [b"first", b"second"]
    assert shown[1].headers["etag"] == f'"{hashlib.sha256(b"second").hexdigest()}"'
    assert shown[1].headers["content-disposition"] == f'inline; filename="avatar-{job.job_id}-1.png"'
    assert shown[1].headers["cache-control"] == "private, max-age=3600"
    for missing, named in (
        ("generated/2", "has no image 2; it has 0, 1."),
        ("generated/99", "has no image 99; it has 0, 1."),
        ("generated", "has no generated image."),
    ):
        refused = problem(await rest.client.get(f"{path}/{missing}"))
        assert (refused["status"], refused["code"]) == (404, "image_not_found")
        assert named in refused["detail"]
    for no_index in ("-1", "two"):
        refused = problem(await rest.client.get(f"{path}/generated/{no_index}"))
        assert (refused["status"], refused["field"], refused["value"]) == (422, "index", no_index)


async def test_the_avatar_is_the_image_that_is_kept_or_else_the_first(rest: Rest) -> None:
    job = await published(rest, await rest.submitted("ana", a_jpeg(), variants="2"), b"first")
    path = f"/customers/ana/photos/{job.job_id}/generated"
    second = replace(job.images[0], index=1, stored=replace(job.images[0].stored, key=job.original.key))
    done = rest.tracker.commit(job.complete(an_outcome(), job.created_at, second), EventKind.DONE)
    await view(rest, done)

    first = await rest.client.get(path)
    await view(rest, rest.tracker.commit(done.keep(1), EventKind.KEPT))
    kept = await rest.client.get(path)
    later = {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
    again = await rest.client.get(path, headers=later)

    assert first.content == b"first"
    # Another image may come to stand there, which is no younger.
    assert first.headers["cache-control"] == "private, no-cache"
    assert "last-modified" not in first.headers
    assert kept.content == again.content == (await rest.client.get(f"{path}/1")).content != b"first"


async def view(rest: Rest, job: ProfilePhotoJob) -> None:
    await rest.live.wait_for(job.customer_id, job.job_id, lambda seen: seen.seq >= job.seq, 10)


@pytest.mark.parametrize("fields", [{"variants": "9"}, {"variants": "two"}, {"vary": "prompt"}])
async def test_what_cannot_be_made_is_refused_on_every_channel(
    service: Service, fields: dict[str, str]
) -> None:
    [(name, value)] = fields.items()
    refused = problem(await service.post(**fields))
    assert (refused["status"], refused["field"], refused["value"]) == (422, name, value)
    async with calls(service) as stub:
        if value != "two":
            told: dict[str, object] = {name: int(value) if name == "variants" else value}
            request = pb.SubmitPhotoRequest(customer_id="ana", photo=a_jpeg(), **told)
            with pytest.raises(grpc.aio.AioRpcError, match=f"{name} is '{value}', but it must be"):
                await stub.SubmitPhoto(request)


@asynccontextmanager
async def calls(service: Service) -> AsyncIterator[ProfilePhotoJobServiceStub]:
    async with serving_grpc(service) as address, grpc.aio.insecure_channel(address) as channel:
        yield ProfilePhotoJobServiceStub(channel)


async def keep(service: Service, job_id: str, body: str | bytes) -> httpx.Response:
    return await service.client.put(f"/customers/ana/photos/{job_id}/kept", content=body)


async def test_an_image_is_kept_over_rest_and_grpc(service: Service) -> None:
    job_id = await service.submitted()
    await service.ended(job_id)
    kept = await keep(service, job_id, '{"index": 0}')
    assert (kept.status_code, kept.json()["kept"]) == (200, 0)
    assert (await service.get(job_id)).json() == kept.json()
    assert service.story(job_id)[-1] == (kept.json()["seq"], "kept")
    async with calls(service) as stub:
        told = await stub.KeepImage(pb.KeepImageRequest(customer_id="ana", job_id=job_id, index=0))
        assert (told.kept, told.seq, told.HasField("kept")) == (0, kept.json()["seq"], True)
        with pytest.raises(grpc.aio.AioRpcError, match=r"index is 5, but it must be .*: 0") as refused:
            await stub.KeepImage(pb.KeepImageRequest(customer_id="ana", job_id=job_id, index=5))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_image_that_is_not_there_cannot_be_kept(service: Service) -> None:
    waiting = await service.running()
    refused = problem(await keep(service, waiting, '{"index": 0}'))
    assert (refused["status"], refused["code"], refused["field"]) == (422, "invalid_request", "index")
    assert "none yet" in refused["detail"]
    assert (await keep(service, "none", '{"index": 0}')).status_code == 404
    assert service.recorded(waiting).kept is None
    missing = await service.client.get(f"/customers/ana/photos/{waiting}/generated/0")
    assert "has no image 0; it has none yet." in problem(missing)["detail"]
    await service.command("cancel", waiting)
    assert problem(await keep(service, waiting, '{"index": 0}'))["detail"].endswith("there is: none.")
    done = await service.submitted(variants="2")
    await service.ended(done)
    for index in (-1, 2):
        refused = problem(await keep(service, done, f'{{"index": {index}}}'))
        assert (refused["status"], refused["field"], refused["value"]) == (422, "index", index)
        assert refused["detail"].endswith("there is: 0, 1.")


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ("", "body", ""),
        ("[]", "body", []),
        ("{", "body", "{"),
        (b"\xff", "body", "\ufffd"),
        ("{}", "index", None),
        ('{"index": "0"}', "index", "0"),
        ('{"index": true}', "index", True),
        ('{"index": 0' + " " * 5000 + "}", "body", "more than 1024 bytes"),
    ],
)
async def test_a_body_that_names_no_image_is_refused(
    service: Service, body: str | bytes, field: str, value: object
) -> None:
    refused = problem(await keep(service, "none", body))
    assert (refused["status"], refused["code"], refused["field"]) == (422, "invalid_request", field)
    assert refused["value"] == value
    assert '{"index": 0}' in refused["detail"]
