"""The Python client and the real service, with a line between them that can be cut."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from avatarforge.client import (
    AsyncClient,
    Client,
    Conflict,
    DeliveryState,
    InvalidRequest,
    JobChanged,
    JobErased,
    JobEvent,
    JobProgressed,
    JobRef,
    NotFound,
    ServerBusy,
    ServerUnreachable,
    Snapshot,
    verify_webhook,
)
from tests.events import subscriber_count
from tests.integration.rest import A_SECRET, a_jpeg
from tests.integration.service import SECONDS, Service, a_preview, running_service
from tests.receivers import Receiver
from tests.waiting import wait_until

T = TypeVar("T")


class Line:
    """A TCP line to the service: open, or cut."""

    def __init__(self, target: str) -> None:
        self._target = httpx.URL(target)
        self._links: set[asyncio.Task[None]] = set()
        self._swallow = False
        self.url = ""

    @asynccontextmanager
    async def laid(self) -> AsyncIterator["Line"]:
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await self.cut()

    async def cut(self) -> None:
        links = [*self._links]
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def swallow_next_answer(self) -> None:
        """The service hears the next request, and its answer is lost with the connection."""
        self._swallow = True

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        there_reader, there_writer = await asyncio.open_connection(self._target.host, self._target.port)
        try:
            asking = asyncio.create_task(self._pass(reader, there_writer))
            with suppress(ConnectionError):
                await self._answers(there_reader, writer)
            asking.cancel()
        except asyncio.CancelledError:
            # The test cuts: nobody waits for this task but its own callback, which would log it.
            asking.cancel()
        finally:
            self._links.discard(task)
            writer.transport.abort()
            there_writer.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self._swallow:
                self._swallow = False
                return
            writer.write(chunk)
            await writer.drain()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()


@pytest_asyncio.fixture
async def line(service: Service) -> AsyncIterator[Line]:
    async with Line(service.url).laid() as line:
        yield line


@pytest_asyncio.fixture
async def client(line: Line) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(line.url, retry_timeout=SECONDS) as client:
        yield client


async def in_thread(call: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(call), SECONDS)


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, SECONDS)


class Heard:
    """Listens in the background."""

    def __init__(self, events: AsyncIterator[JobEvent]) -> None:
        self.events: list[JobEvent] = []
        self._task = asyncio.create_task(self._listen(events))

    async def _listen(self, events: Any) -> None:
        async with aclosing(events):
            async for event in events:
                self.events.append(event)

    async def end(self) -> list[JobEvent]:
        await within(self._task)
        return self.events

    async def stop(self) -> list[JobEvent]:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        return self.events

    @property
    def changes(self) -> list[tuple[int, str]]:
        return [(event.seq, event.job.status.value) for event in self.events if isinstance(event, JobChanged)]


# --- calls -------------------------------------------------------------------------------------------------


async def test_a_photo_is_followed_to_its_avatar(client: AsyncClient, service: Service) -> None:
    photo = a_jpeg()
    accepted = await client.submit("ana", photo, style="neon", seed=5, format="png")
    done = await client.wait(accepted, seconds=SECONDS)
    avatar, original = await client.download(done), await client.download(done, "original")

    assert (done.status, done.seed, done.job_id) == ("DONE", 5, accepted.job_id)
    assert (avatar.content, avatar.media_type) == (b"\x89PNG avatar of " + done.job_id.encode(), "image/png")
    assert original.media_type == "image/jpeg"
    with Image.open(io.BytesIO((await client.download(done, "square")).content)) as square:
        assert square.width == square.height
    assert await client.get_status(JobRef("ana", done.job_id)) == done
    assert (await client.get_status(done, after=done.seq - 1)).seq == done.seq


async def test_the_blocking_client_does_the_same(service: Service) -> None:
    def all_of_it() -> list[type]:
        with Client(service.url) as client:
            accepted = client.submit("ana", a_jpeg(), style="neon")
            heard = [type(event) for event in client.watch(accepted) if not isinstance(event, JobProgressed)]
            done = client.wait(accepted, seconds=SECONDS)
            assert client.download(done).content.startswith(b"\x89PNG")
            assert [job.job_id for job in client.list_jobs("ana")] == [done.job_id]
            assert [customer.customer_id for customer in client.list_customers()] == ["ana"]
            assert [found.customer_id for found in client.find_jobs(done.job_id[:18])] == ["ana"]
            client.erase(done)
            with pytest.raises(NotFound):
                client.get_status(done)
            return heard

    heard = await in_thread(all_of_it)
    assert (heard[0], set(heard[1:]) <= {JobChanged}) == (Snapshot, True)


async def test_of_several_images_one_is_kept(client: AsyncClient, service: Service) -> None:
    puppet = service.puppet()
    accepted = await client.submit("ana", a_jpeg(), variants=3, vary="seed", seed=5)
    puppet.publish(1)
    first = await client.get_status(accepted, wait_seconds=SECONDS, after=accepted.seq + 1)
    early = await client.download(first, index=1)
    puppet.finish()
    done = await client.wait(accepted, seconds=SECONDS)
    kept = await client.keep(done, 2)

    assert (accepted.images, [image.index for image in first.images]) == ((), [1])
    assert [(image.index, image.seed) for image in done.images] == [(0, 5), (1, 6), (2, 7)]
    files = [await client.download(done, index=image.index) for image in done.images]
    assert (files[1], len({file.content for file in files})) == (early, 3)
    assert (kept.kept, await client.download(done)) == (2, files[2])
    with pytest.raises(InvalidRequest, match="0, 1, 2"):
        await client.keep(done, 3)
    with pytest.raises(NotFound):
        await client.download(done, index=3)
    with pytest.raises(ValueError, match="not for 'square'"):
        await client.download(done, "square", index=1)


async def test_jobs_are_cancelled_made_anew_and_erased(client: AsyncClient, service: Service) -> None:
    running = JobRef("ana", await service.running())
    with pytest.raises(Conflict) as refused:
        await client.retry(running)
    cancelled = await client.cancel(running)
    again = await client.retry(cancelled)
    done = await client.wait(again, seconds=SECONDS)
    with pytest.raises(Conflict):
        await client.cancel(done)
    await client.erase(running)

    assert refused.value.code == "job_not_finished"
    assert (cancelled.status, done.retry_of) == ("CANCELLED", running.job_id)
    assert [job.job_id async for job in client.list_jobs("ana")] == [done.job_id]


async def test_pages_are_read_to_the_end(
    client: AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avatarforge.client.async_client.PAGE_SIZE", 2)
    ids = [await service.submitted(customer) for customer in ("ana", "ana", "ana", "ben", "cleo")]

    assert [job.job_id async for job in client.list_jobs("ana")] == ids[2::-1]
    assert [each.customer_id async for each in client.list_customers()] == ["ana", "ben", "cleo"]
    assert (await client.get_customer("ana")).photo_count == 3
    await client.erase_customer("ana")
    with pytest.raises(NotFound) as refused:
        await client.get_customer("ana")
    assert refused.value.code == "customer_not_found"


async def test_what_the_server_makes_is_told(client: AsyncClient) -> None:
    [model] = (await client.list_models()).models
    styles = await client.list_styles()
    assert (model.name, styles.model) == ("avatar-mini", "avatar-mini")
    assert styles.styles == model.styles
    assert await client.is_ready()


async def test_links_to_images_need_no_key(tmp_path: Any) -> None:
    async with (
        running_service(tmp_path, access={"link_secrets": "s" * 32}) as service,
        AsyncClient(service.url) as client,
        httpx.AsyncClient(base_url=service.url) as stranger,
    ):
        done = await client.wait(await client.submit("ana", a_jpeg()), seconds=SECONDS)
        links = await client.get_links(done)
        assert links.generated_url is not None
        assert (await stranger.get(links.generated_url)).content == (await client.download(done)).content
        longer = await client.get_links(done, expires_seconds=86_400)
        assert (longer.expires_at - links.expires_at).total_seconds() == pytest.approx(86_100, abs=10)


async def test_a_refusal_says_what_would_be_right(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await client.submit("ana", a_jpeg(), guidance=99)
    assert (refused.value.code, refused.value.extensions["field"]) == ("invalid_request", "guidance")
    assert "from 0 to 30" in str(refused.value)


async def test_a_webhook_is_verified_and_can_be_sent_again(client: AsyncClient, service: Service) -> None:
    async with Receiver().serving() as receiver:
        accepted = await client.submit("ana", a_jpeg(), callback_url=receiver.url())
        done = await client.wait(accepted, seconds=SECONDS)

        async def is_delivered() -> bool:
            return [each.state for each in await client.list_deliveries(done)] == [DeliveryState.DELIVERED]

        await wait_until(is_delivered)
        [delivery] = await client.list_deliveries(done)
        again = await client.redeliver(done, delivery.delivery_id)
        await wait_until(lambda: len(receiver.received) == 2)
        call = receiver.received[0]

    webhook = verify_webhook(call.headers, call.body, A_SECRET)
    assert (webhook.webhook_id, webhook.job) == (delivery.delivery_id, done)
    assert again.delivery_id == delivery.delivery_id


# --- lost connections --------------------------------------------------------------------------------------


async def test_an_upload_whose_answer_is_lost_makes_one_job(
    client: AsyncClient, line: Line, service: Service
) -> None:
    line.swallow_next_answer()
    accepted = await within(client.submit("ana", a_jpeg()))
    assert [job.job_id for job in service.records.list_jobs("ana", None, 10)] == [accepted.job_id]


async def test_an_upload_waits_for_the_tracker_to_be_back(client: AsyncClient, service: Service) -> None:
    await service.kill_trackers()
    uploading = asyncio.create_task(client.submit("ana", a_jpeg()))
    await asyncio.wait({uploading}, timeout=0.3)
    assert not uploading.done()
    await service.start_trackers()
    assert (await within(uploading)).customer_id == "ana"
    assert len(service.records.list_jobs("ana", None, 10)) == 1


async def test_without_retries_a_tracker_that_is_away_is_reported_at_once(service: Service) -> None:
    await service.kill_trackers()
    async with AsyncClient(service.url, retry_timeout=0) as client:
        with pytest.raises(ServerBusy) as refused:
            await client.submit("ana", a_jpeg())
    assert refused.value.code == "tracker_unavailable"


# --- watching ----------------------------------------------------------------------------------------------


async def test_watching_a_job_ends_with_the_job_and_shows_its_steps(
    client: AsyncClient, service: Service
) -> None:
    puppet = service.puppet()
    accepted = await client.submit("ana", a_jpeg())
    await within(puppet.runs.wait())
    heard = Heard(client.watch(accepted, previews=True))
    await wait_until(lambda: heard.events)
    puppet.step(3, preview=a_preview(), index=1)
    await wait_until(lambda: any(isinstance(event, JobProgressed) for event in heard.events))
    puppet.finish()
    events = await heard.end()

    assert isinstance(events[0], Snapshot)
    assert [job.job_id for job in events[0].jobs] == [accepted.job_id]
    step = next(each for each in events if isinstance(each, JobProgressed))
    assert (step.preview, step.index) == (a_preview(), 1)
    assert step.job.progress is not None
    assert step.job.progress.step == 3
    assert isinstance(events[-1], JobChanged)
    assert events[-1].job.status == "DONE"
    # One that has ended has nothing more to tell.
    assert [event async for event in client.watch(accepted, after=events[-1].seq)] == []


async def test_watching_a_job_that_has_ended_tells_what_was_kept_since(
    client: AsyncClient, service: Service
) -> None:
    job_id = await service.submitted(variants="2")
    done = await service.ended(job_id)
    await client.keep(JobRef("ana", job_id), 1)
    events = [event async for event in client.watch(JobRef("ana", job_id), after=done["seq"] - 1)]
    changes = [event.job for event in events if isinstance(event, JobChanged)]
    assert [(job.status, job.kept) for job in changes] == [("DONE", None), ("DONE", 1)]


async def test_no_change_is_missed_or_told_twice_however_often_the_line_is_cut(
    client: AsyncClient, line: Line, service: Service
) -> None:
    first = await service.submitted()
    await service.ended(first)
    heard = Heard(client.watch("ana", after=0))
    jobs = [first]
    for _ in range(4):
        await line.cut()
        jobs.append(await service.submitted())
        await service.ended(jobs[-1])
    expected = sorted(seq for job_id in jobs for seq, _ in service.story(job_id))
    await wait_until(lambda: len(heard.changes) >= len(expected))
    await heard.stop()
    assert [seq for seq, _ in heard.changes] == expected


async def test_watching_goes_on_over_the_death_of_the_tracker(client: AsyncClient, service: Service) -> None:
    job_id = await service.running()
    heard = Heard(client.watch(JobRef("ana", job_id), after=0))
    await wait_until(lambda: heard.changes)
    await service.kill_trackers()
    await service.start_trackers()
    await heard.end()
    assert [seq for seq, _ in heard.changes] == [seq for seq, _ in service.story(job_id)]
    assert heard.changes[-1][1] == "DONE"


async def test_a_stream_that_the_server_ends_is_resumed(tmp_path: Any) -> None:
    async with (
        running_service(tmp_path, ingress={"max_stream_seconds": 1}) as service,
        AsyncClient(service.url, retry_timeout=SECONDS) as client,
    ):
        job_id = await service.running()
        heard = Heard(client.watch(JobRef("ana", job_id)))
        await wait_until(lambda: heard.events)
        await asyncio.wait({heard._task}, timeout=1.5)
        await service.command("cancel", job_id)
        await heard.end()
    assert [type(event) for event in heard.events] == [Snapshot, JobChanged]


async def test_a_watcher_that_is_told_to_come_back_resumes(tmp_path: Any) -> None:
    async with (
        running_service(tmp_path, ingress={"stream_buffer": 2}) as service,
        AsyncClient(service.url, retry_timeout=SECONDS) as client,
    ):
        heard = Heard(client.watch("ana"))
        await wait_until(lambda: heard.events)
        jobs = await asyncio.gather(*(service.submitted() for _ in range(12)))
        expected = await wait_until(lambda: _all_ended(service, jobs))
        await wait_until(lambda: len(heard.changes) >= len(expected))
        await heard.stop()
    assert [seq for seq, _ in heard.changes] == expected


def _all_ended(service: Service, jobs: list[str]) -> list[int] | None:
    stories = [service.story(job_id) for job_id in jobs]
    return (
        sorted(seq for story in stories for seq, _ in story)
        if all(s[-1][1] == "done" for s in stories)
        else None
    )


async def test_a_watcher_hears_of_an_erasure(client: AsyncClient, service: Service) -> None:
    job = JobRef("ana", await service.running())
    heard = Heard(client.watch(job))
    await wait_until(lambda: heard.events)
    await client.erase(job)
    events = await heard.end()
    assert isinstance(events[-1], JobErased)
    assert (events[-1].job_id, events[-1].customer_id) == (job.job_id, "ana")


async def test_watching_gives_up_when_nobody_has_answered_for_so_long() -> None:
    async with AsyncClient("http://127.0.0.1:1", retry_timeout=0.5) as client:
        with pytest.raises(ServerUnreachable):
            await anext(client.watch("ana"))


async def test_watching_a_job_that_is_not_there_is_refused(client: AsyncClient) -> None:
    with pytest.raises(NotFound):
        await anext(client.watch(JobRef("ana", "none")))


async def test_a_watcher_that_stops_gives_its_connection_back(service: Service) -> None:
    job_id = await service.running()

    def watch_and_stop() -> None:
        with Client(service.url) as client:
            events = client.watch(JobRef("ana", job_id))
            assert isinstance(next(events), Snapshot)
            events.close()

    await in_thread(watch_and_stop)
    await wait_until(lambda: not subscriber_count(service.live))
