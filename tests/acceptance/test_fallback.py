"""`avatarforge up` with a remote server that is the service itself: both ends of the API under real Ray."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from avatarforge.client import AsyncClient, ProfilePhotoJobStatus
from tests.servers.avatarforge import AvatarForgeServer
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvatarForgeServer]:
    service = AvatarForgeServer(
        tmp_path_factory.mktemp("fallback"), HTTP_SDAPI="true", REMOTE_POLICY="remote", REMOTE_CONCURRENCY="2"
    )
    service.configure(REMOTE_URL=service.url)
    with service:
        yield service


@pytest_asyncio.fixture
async def forge(service: AvatarForgeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url, timeout=90) as forge:
        yield forge


@pytest_asyncio.fixture
async def client(service: AvatarForgeServer) -> AsyncIterator[httpx.AsyncClient]:
    """For AUTOMATIC1111's API."""
    async with httpx.AsyncClient(base_url=service.url, timeout=90) as client:
        yield client


async def jobs_through_the_api(forge: AsyncClient) -> list[ProfilePhotoJobStatus]:
    """Newest first."""
    return [job async for job in forge.list_jobs("sdapi")]


async def avatar(forge: AsyncClient, job: ProfilePhotoJobStatus) -> Any:
    """Pixels as (H, W, 3) whole numbers."""
    with Image.open(BytesIO((await forge.download(job)).content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


async def test_a_job_goes_out_and_comes_back_and_its_photo_may_stay(
    forge: AsyncClient, portrait: bytes
) -> None:
    leaving = await forge.submit("ana", portrait, seed=3, style="watercolor")
    staying = await forge.submit("ana", portrait, seed=3, style="watercolor", allow_remote=False)
    ends = [await forge.wait(job, seconds=90) for job in (leaving, staying)]
    assert [end.backend for end in ends] == ["remote", "local"]
    assert [job.backend for job in await jobs_through_the_api(forge)] == ["local"]
    # The same square, seed and model: the way makes no difference, but for rounding in other batches.
    there, here = [await avatar(forge, end) for end in ends]
    assert np.abs(there - here).max() <= 2


async def test_a_cancelled_job_is_cancelled_at_the_other_end(forge: AsyncClient, portrait: bytes) -> None:
    job = await forge.submit("ana", portrait, steps=150)

    async def steps() -> int:
        progress = (await forge.get_status(job)).progress
        return progress.step if progress else 0

    await wait_until(steps, 30)
    await forge.cancel(job)

    async def is_cancelled() -> bool:
        return (await jobs_through_the_api(forge))[0].status == "CANCELLED"

    await wait_until(is_cancelled, 10)


async def test_a_client_of_the_api_that_goes_away_cancels_its_job(
    client: httpx.AsyncClient, forge: AsyncClient, portrait: bytes
) -> None:
    request = {"init_images": [b64encode(portrait).decode()], "steps": 150, "denoising_strength": 1}
    asking = asyncio.create_task(client.post("/sdapi/v1/img2img", json=request))

    async def is_running() -> bool:
        return bool((await client.get("/sdapi/v1/progress")).json()["progress"])

    await wait_until(is_running, 30)
    asking.cancel()
    await asyncio.wait({asking})

    async def is_cancelled() -> bool:
        return (await jobs_through_the_api(forge))[0].status == "CANCELLED"

    await wait_until(is_cancelled, 10)
