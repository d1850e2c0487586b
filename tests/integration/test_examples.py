"""The examples, run as they stand, against the real service."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest_asyncio

from avatarforge.settings import PREFIX
from tests.events import subscriber_count
from tests.integration.rest import A_SECRET
from tests.integration.service import SECONDS, Service, serving_grpc
from tests.servers.mariadb import free_port
from tests.waiting import wait_until

TREE = Path(__file__).parents[2]
PHOTO = TREE / "avatarforge" / "samples" / "portrait.png"


class Example:
    """A program of `examples/` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    @classmethod
    async def started(cls, *command: str, **variables: str) -> "Example":
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                cwd=TREE,
                env=environ | {"PYTHONPATH": str(TREE)} | variables,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )

    async def ended(self) -> list[str]:
        """What it said. It has to end well by itself."""
        out, _ = await asyncio.wait_for(self._process.communicate(), 30)
        assert self._process.returncode == 0, out.decode()
        return out.decode().splitlines()

    async def says(self, words: str) -> str:
        """The next line with these words."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while line := (await self._process.stdout.readline()).decode():
                self.lines.append(line)
                if words in line:
                    return line
        raise AssertionError(f"it ended without saying {words!r}: {self.lines}")

    async def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.communicate()


@pytest_asyncio.fixture
async def address(service: Service) -> AsyncIterator[str]:
    async with serving_grpc(service) as address:
        yield address


async def test_a_receiver_takes_what_is_signed_and_nothing_else(service: Service) -> None:
    port = free_port()
    receiver = await Example.started(
        *("-m", "uvicorn", "examples.webhook_receiver:app", "--port", str(port)), WEBHOOK_SECRETS=A_SECRET
    )
    try:
        await receiver.says("Uvicorn running")
        url = f"http://127.0.0.1:{port}/avatarforge"
        job_id = await service.submitted(callbackUrl=url)
        told = await receiver.says(job_id)
        async with httpx.AsyncClient() as stranger:
            forged = await stranger.post(url, json={"jobId": "x"})
    finally:
        await receiver.stop()
    assert told == f"ana: job {job_id} is DONE, its avatar at /customers/ana/photos/{job_id}/generated\n"
    assert forged.status_code == 401
    assert "The webhook is not to be trusted" in forged.json()["detail"]


async def test_a_watcher_keeps_every_avatar_over_the_death_of_the_tracker(
    service: Service, tmp_path: Path
) -> None:
    watcher = await Example.started(
        *("examples/watch_customer.py", "ana", str(tmp_path / "avatars")), AVATARFORGE_URL=service.url
    )
    try:
        await wait_until(lambda: subscriber_count(service.live), 30)
        first = await service.submitted()
        await watcher.says(f"{first}  DONE")
        await service.kill_trackers()
        await service.start_trackers()
        second = await service.submitted(variants="2")
        await watcher.says(f"{second}  DONE")
        avatars = tmp_path / "avatars"
        await wait_until(lambda: len(list(avatars.iterdir())) == 3, SECONDS)
    finally:
        await watcher.stop()
    assert (avatars / f"{first}.png").read_bytes() == b"\x89PNG avatar of " + first.encode()
    for image in service.recorded(second).images:
        made = service.storage.get(image.stored.key)
        assert (avatars / f"{second}-{image.index}.png").read_bytes() == made


async def test_a_grpc_client_follows_its_photo(service: Service, address: str) -> None:
    example = await Example.started("examples/grpc_client.py", address, "ana", str(PHOTO))
    lines = await example.ended()
    [job] = service.records.list_jobs("ana", None, 10)
    assert lines[-1] == f"/customers/ana/photos/{job.job_id}/generated"
    assert lines[-2].startswith(f"{job.job_id} PROCESSING_STATUS_DONE")
    assert job.parameters.style == "watercolor"


async def test_an_asynchronous_grpc_client_waits_for_all_its_photos(service: Service, address: str) -> None:
    example = await Example.started("examples/grpc_client_aio.py", address, "ana", *[str(PHOTO)] * 3)
    lines = await example.ended()
    assert {line.split()[0] for line in lines} == {
        job.job_id for job in service.records.list_jobs("ana", None, 10)
    }
    assert [line.split()[1] for line in lines] == ["PROCESSING_STATUS_DONE"] * 3
