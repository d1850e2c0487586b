"""Every channel tells the same story of a job, with the same numbers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from avatarforge.ingress.grpc import JobMethods
from avatarforge.ingress.grpc.serving import add_job_service_to_server
from tests.events import Event
from tests.integration.rest import A_SECRET
from tests.integration.service import Puppet, Service
from tests.receivers import Receiver
from tests.waiting import wait_until

Chapter = dict[str, Any]
"""A status as it was told, but for what is only live and differs from moment to moment."""
ERASED: Chapter = {"erased": True}

LIVE_ONLY = {"progress", "etaSeconds", "queuePosition"}
NUMBERS = {"seq", "seed", "attempt"}
TIMES = {"createdAt", "startedAt", "finishedAt"}


def chapter(status: dict[str, Any]) -> Chapter:
    """The JSON of a status, whether REST's or that of protobuf, which leaves out what is not set."""
    told: Chapter = {name: value for name, value in status.items() if value is not None}
    told = {name: value for name, value in told.items() if name not in LIVE_ONLY}
    told |= {name: int(told[name]) for name in NUMBERS}
    told |= {name: datetime.fromisoformat(told[name]) for name in TIMES & set(told)}
    told["status"] = told["status"].removeprefix("PROCESSING_STATUS_")
    for part in ("timings", "parameters"):
        told[part] = {name: value for name, value in told[part].items() if value is not None}
    told["images"] = [
        {name: value for name, value in image.items() if value is not None} | {"seed": int(image["seed"])}
        for image in told["images"]
    ]
    return told


def is_last(told: Chapter) -> bool:
    return told == ERASED or bool(told["isTerminal"])


# --- the channels -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Channels:
    service: Service
    grpc: ProfilePhotoJobServiceStub
    receiver: Receiver

    async def polling(self, job_id: str) -> AsyncGenerator[Chapter, None]:
        while True:
            answer = await self.service.get(job_id)
            yield ERASED if answer.status_code == 404 else chapter(answer.json())
            await asyncio.sleep(0.02)

    async def long_poll(self, job_id: str) -> AsyncGenerator[Chapter, None]:
        seen = 0
        while (answer := await self.service.get(job_id, after=seen, waitSeconds=30)).status_code != 404:
            seen = answer.json()["seq"]
            yield chapter(answer.json())
        yield ERASED

    async def sse(self, job_id: str) -> AsyncGenerator[Chapter, None]:
        async with self.service.stream(jobId=job_id) as stream:
            for event in await stream.until("snapshot"):
                yield from_event(event)
            while (event := await stream.next(30)).kind != "erased":
                yield from_event(event)
            yield ERASED

    async def grpc_unary(self, job_id: str) -> AsyncGenerator[Chapter, None]:
        seen = 0
        while True:
            request = pb.JobStatusRequest(customer_id="ana", job_id=job_id, wait_seconds=30, after_seq=seen)
            try:
                status = await self.grpc.GetStatus(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                yield ERASED
                return
            seen = status.seq
            yield from_message(status)

    async def grpc_stream(self, job_id: str) -> AsyncGenerator[Chapter, None]:
        async for status in self.grpc.StreamStatus(pb.StatusStreamRequest(customer_id="ana", job_id=job_id)):
            yield from_message(status)

    @property
    def followed(self) -> list[Callable[[str], AsyncGenerator[Chapter, None]]]:
        """The channels that tell of every change."""
        return [self.polling, self.long_poll, self.sse, self.grpc_unary, self.grpc_stream]

    async def webhook(self) -> Chapter:
        await wait_until(lambda: self.receiver.received)
        [received] = self.receiver.received
        return chapter(received.verified(A_SECRET))


def from_event(event: Event) -> Chapter:
    return chapter(event.data["photos"][0] if event.kind == "snapshot" else event.data)


def from_message(message: pb.ProfilePhotoJobStatus) -> Chapter:
    if message.status == pb.PROCESSING_STATUS_UNSPECIFIED:
        return ERASED
    return chapter(MessageToDict(message, always_print_fields_with_no_presence=True))


@asynccontextmanager
async def all_channels(service: Service) -> AsyncIterator[Channels]:
    server = grpc.aio.server()
    add_job_service_to_server(JobMethods(service.photos, service.authorizer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Receiver().serving() as receiver, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Channels(service, ProfilePhotoJobServiceStub(channel), receiver)
    await server.stop(None)


class Listener:
    """A client that follows a job on one channel and writes down each new chapter."""

    def __init__(self, chapters: AsyncGenerator[Chapter, None]) -> None:
        self._chapters = chapters
        self.heard: list[Chapter] = []

    async def listen(self) -> None:
        async for told in self._chapters:
            if not self.heard or told != self.heard[-1]:
                self.heard.append(told)
            if is_last(told):
                break
        await self._chapters.aclose()


# --- the fates --------------------------------------------------------------------------------------------


async def done(service: Service, job_id: str, generation: Puppet) -> None:
    generation.finish()


async def failed(service: Service, job_id: str, generation: Puppet) -> None:
    generation.fail()


async def cancelled(service: Service, job_id: str, generation: Puppet) -> None:
    assert (await service.command("cancel", job_id)).status_code == 200


async def erased(service: Service, job_id: str, generation: Puppet) -> None:
    assert (await service.erase(job_id)).status_code == 204


Fate = Callable[[Service, str, Puppet], Awaitable[None]]


async def a_job(channels: Channels) -> tuple[str, str | None]:
    """The job's id; it was not made from another."""
    return await channels.service.submitted(callbackUrl=channels.receiver.url(), seed="5"), None


async def a_retry(channels: Channels) -> tuple[str, str | None]:
    """The job's id, and that of the one it was made from."""
    service = channels.service
    first, _ = await a_job(channels)
    await service.command("cancel", first)
    await wait_until(lambda: channels.receiver.received)
    channels.receiver.received.clear()
    return str((await service.command("retry", first)).json()["jobId"]), first


async def heard(listeners: list[Listener], chapters: int) -> None:
    await wait_until(
        lambda: all(len(listener.heard) == chapters for listener in listeners),
        what=f"{chapters} chapters on each channel",
    )


async def replayed(service: Service, job_id: str, after: int) -> list[Chapter]:
    """The story as one hears it afterwards, from a replica that was not there."""
    async with service.fresh_replica() as fresh, fresh.stream(jobId=job_id, after=after) as late:
        events = await late.rest()
    return [ERASED if event.kind == "erased" else from_event(event) for event in events]


@pytest.mark.parametrize(
    ("fate", "end"), [(done, "DONE"), (failed, "FAILED"), (cancelled, "CANCELLED"), (erased, None)]
)
@pytest.mark.parametrize("make", [a_job, a_retry])
async def test_every_channel_tells_the_same_story(
    service: Service,
    make: Callable[[Channels], Awaitable[tuple[str, str | None]]],
    fate: Fate,
    end: str | None,
) -> None:
    async with all_channels(service) as channels, asyncio.TaskGroup() as group:
        before = [service.puppet(), service.puppet()]
        for puppet in before:
            await service.submitted("somebody")
            await puppet.runs.wait()
        generation = service.puppet()
        job_id, retry_of = await make(channels)
        listeners = [Listener(follow(job_id)) for follow in channels.followed]
        for listener in listeners:
            group.create_task(listener.listen())
        await heard(listeners, 1)
        before[0].finish()
        await heard(listeners, 2)
        await fate(service, job_id, generation)
        await heard(listeners, 3)

        story = listeners[0].heard
        assert [listener.heard for listener in listeners] == [story] * len(listeners)
        assert [told.get("status") for told in story] == ["PENDING", "PROCESSING", end]
        assert [told.get("retryOf") for told in story[:2]] == [retry_of] * 2
        numbers = [number for number, _ in service.story(job_id)]
        assert [told["seq"] for told in story if told != ERASED] == numbers[: 3 if end else 2]
        assert await replayed(service, job_id, numbers[0] - 1) == (story if end else [ERASED])
        if end is not None:
            assert await channels.webhook() == story[-1]
        assert len(channels.receiver.received) == (1 if end else 0)


async def test_every_channel_tells_of_each_image_and_of_the_choice(service: Service) -> None:
    async with all_channels(service) as channels, asyncio.TaskGroup() as group:
        generation = service.puppet()
        fields = {"variants": "3", "seed": "5", "callbackUrl": channels.receiver.url()}
        job_id = await service.submitted(**fields)
        await generation.runs.wait()
        listeners = [Listener(follow(job_id)) for follow in channels.followed]
        for listener in listeners:
            group.create_task(listener.listen())
        await heard(listeners, 1)
        generation.publish(2)
        await heard(listeners, 2)
        path = f"/customers/ana/photos/{job_id}/kept"
        assert (await service.client.put(path, json={"index": 2})).status_code == 200
        await heard(listeners, 3)
        generation.publish(0)
        await heard(listeners, 4)
        generation.finish()
        await heard(listeners, 5)

        story = listeners[0].heard
        assert [listener.heard for listener in listeners] == [story] * len(listeners)
        assert [[image["index"] for image in told["images"]] for told in story] == [
            *([], [2], [2], [0, 2], [0, 1, 2])
        ]
        assert [told.get("kept") for told in story] == [None, None, 2, 2, 2]
        assert [image["seed"] for image in story[-1]["images"]] == [5, 6, 7]
        numbers = [number for number, _ in service.story(job_id)]
        assert [kind for _, kind in service.story(job_id)] == [
            *("submitted", "started", "image", "kept", "image", "done")
        ]
        assert await replayed(service, job_id, numbers[1] - 1) == story
        assert await channels.webhook() == story[-1]


async def test_a_choice_after_the_end_is_told_and_calls_no_webhook(service: Service) -> None:
    async with all_channels(service) as channels:
        job_id = await service.submitted(variants="2", callbackUrl=channels.receiver.url())
        done = await service.ended(job_id)
        await channels.webhook()
        following = service.stream(after=done["seq"])
        async with following as stream:
            kept = await service.client.put(f"/customers/ana/photos/{job_id}/kept", json={"index": 1})
            event = await stream.next()
        late = await replayed(service, job_id, done["seq"])
        whole = await replayed(service, job_id, done["seq"] - 1)
        request = pb.StatusStreamRequest(customer_id="ana", job_id=job_id, after_seq=done["seq"] - 1)
        streamed = [from_message(status) async for status in channels.grpc.StreamStatus(request)]

    assert whole == streamed == [chapter(done), *late]
    assert kept.json() == {**done, "kept": 1, "seq": done["seq"] + 1}
    assert [chapter(event.data)] == late == [chapter(kept.json())]
    assert len(service.deliveries.list_reports("ana", job_id)) == 1
