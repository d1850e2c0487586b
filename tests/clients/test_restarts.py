"""Restarts of the whole service below clients that follow it: in order, and by `kill -9` of everything."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from playwright.async_api import Page, async_playwright

from avatarforge.client import AsyncClient, JobChanged
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from tests.clients.runs import FOLLOWERS, RESTARTS, following
from tests.integration.rest import a_jpeg
from tests.servers.avatarforge import AvatarForgeServer
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not RESTARTS, reason="each restart takes some ten seconds: `make clients`")

LISTEN = """path => {
  window.heard = [];
  window.source = new EventSource(path);
  source.addEventListener("status", event => heard.push(Number(event.lastEventId)));
}"""


class Pollers:
    """Ask all the time, over connections of their own, and count how they are answered."""

    def __init__(self, service: AvatarForgeServer) -> None:
        self._service = service
        self.answers: Counter[str] = Counter()

    async def poll_rest(self) -> None:
        async with httpx.AsyncClient(base_url=self._service.url, timeout=30, trust_env=False) as client:
            while True:
                try:
                    answer = await client.get("/customers/ana/photos")
                except httpx.TransportError:
                    self.answers["no answer"] += 1
                else:
                    self.answers[_describe(answer)] += 1
                await asyncio.sleep(0.1)

    async def poll_grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._service.grpc_address) as channel:
            stub, request = (
                ProfilePhotoJobServiceStub(channel),
                pb.JobStatusRequest(customer_id="ana", job_id="x"),
            )
            while True:
                try:
                    await stub.GetStatus(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    self.answers[f"gRPC {error.code().name}"] += 1
                await asyncio.sleep(0.1)


def _describe(answer: httpx.Response) -> str:
    if answer.status_code == 503 and "retry-after" in answer.headers:
        return f"503 {answer.headers['content-type']}"
    return str(answer.status_code)


@asynccontextmanager
async def opened_page(url: str) -> AsyncIterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "the tests need Debian's chromium; `make test` installs it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(url)
        yield page
        await browser.close()


async def watch(service: AvatarForgeServer, heard: list[int]) -> None:
    """Follow with our own client, which patiently bears a start."""
    async with AsyncClient(service.url, retry_timeout=120) as client:
        async for event in client.watch("ana", after=0):
            if isinstance(event, JobChanged):
                heard.append(event.seq)


async def stream_grpc(service: AvatarForgeServer, heard: list[int]) -> None:
    """Follow by gRPC as the proto says: however a stream ends, call again with the highest `seq`."""
    while True:
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            request = pb.StatusStreamRequest(customer_id="ana", after_seq=max(heard, default=0))
            try:
                async for message in ProfilePhotoJobServiceStub(channel).StreamStatus(request):
                    if message.seq > max(heard, default=0):
                        heard.append(message.seq)
            except grpc.aio.AioRpcError as error:
                # A stream that is cut after its beginning has no status: gRPC's library calls that unknown.
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                    raise
        await asyncio.sleep(0.2)


async def end_a_job(service: AvatarForgeServer) -> None:
    async with AsyncClient(service.url, retry_timeout=120) as client:
        job = await client.submit("ana", a_jpeg())
        assert (await client.wait(job, seconds=120)).is_terminal


async def test_every_client_has_every_event_after_restarts(tmp_path: Path) -> None:
    ours: dict[str, list[int]] = {"Client.watch": [], "gRPC": []}
    async with AsyncExitStack() as stack:
        service = AvatarForgeServer(tmp_path / "data")
        stack.callback(service.stop)
        await asyncio.to_thread(service.start, 300)
        path = "/customers/ana/photos/stream?after=0"
        page = await stack.enter_async_context(opened_page(f"{service.url}/docs"))
        await page.evaluate(LISTEN, path)
        followers = {
            name: await stack.enter_async_context(following(name, service.url + path)) for name in FOLLOWERS
        }
        pollers = Pollers(service)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(task)
                for task in (
                    pollers.poll_rest(),
                    pollers.poll_grpc(),
                    watch(service, ours["Client.watch"]),
                    stream_grpc(service, ours["gRPC"]),
                )
            ]
            await end_a_job(service)
            for restart in range(RESTARTS):
                await asyncio.to_thread(service.kill if restart % 2 else service.stop)
                await asyncio.to_thread(service.start, 300)
                await end_a_job(service)
            async with AsyncClient(service.url, retry_timeout=120) as client:
                last = (await anext(client.list_jobs("ana"))).seq

            async def heard() -> dict[str, list[int]]:
                return {
                    **{name: follower.changes for name, follower in followers.items()},
                    **ours,
                    "Chromium": await page.evaluate("heard"),
                }

            async def have_all() -> bool:
                return all(last in numbers for numbers in (await heard()).values())

            try:
                await wait_until(have_all, deadline=60)
            finally:
                print(f"{RESTARTS} restarts: {dict(pollers.answers)}; {last} changes")
                told = await heard()
                for task in tasks:
                    task.cancel()

    assert {name for name, numbers in told.items() if numbers != list(range(1, last + 1))} == set()
    allowed = {
        "200",
        "404",
        "no answer",
        "503 application/problem+json",
        "gRPC NOT_FOUND",
        "gRPC UNAVAILABLE",
    }
    assert set(pollers.answers) <= allowed
