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
async def client(service: AvatarForgeServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=90) as client:
        yield client


async def submitted(client: httpx.AsyncClient, portrait: bytes, **fields: str) -> str:
    answer = await client.post("/customers/ana", files={"photo": portrait}, data=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


async def status(client: httpx.AsyncClient, job_id: str, **query: str) -> dict[str, Any]:
    told: dict[str, Any] = (await client.get(f"/customers/ana/photos/{job_id}/status", params=query)).json()
    return told


async def jobs_through_the_api(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Newest first."""
    return list((await client.get("/customers/sdapi/photos")).json()["photos"])


async def avatar(client: httpx.AsyncClient, told: dict[str, Any]) -> Any:
    """Pixels as (H, W, 3) whole numbers."""
    file = (await client.get(told["generatedUrl"])).content
    with Image.open(BytesIO(file)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


async def test_a_job_goes_out_and_comes_back_and_its_photo_may_stay(
    client: httpx.AsyncClient, portrait: bytes
) -> None:
    leaving = await submitted(client, portrait, seed="3", style="watercolor")
    staying = await submitted(client, portrait, seed="3", style="watercolor", allowRemote="false")
    ends = [await status(client, job_id, waitSeconds="60") for job_id in (leaving, staying)]
    assert [(end["status"], end["backend"]) for end in ends] == [("DONE", "remote"), ("DONE", "local")]
    assert [job["backend"] for job in await jobs_through_the_api(client)] == ["local"]
    # The same square, seed and model: the way makes no difference, but for rounding in other batches.
    there, here = [await avatar(client, end) for end in ends]
    assert np.abs(there - here).max() <= 2


async def test_a_cancelled_job_is_cancelled_at_the_other_end(
    client: httpx.AsyncClient, portrait: bytes
) -> None:
    job_id = await submitted(client, portrait, steps="150", strength="1")

    async def steps() -> int:
        progress = (await status(client, job_id))["progress"]
        return int(progress["step"]) if progress else 0

    await wait_until(steps, 30)
    (await client.post(f"/customers/ana/photos/{job_id}/cancel")).raise_for_status()

    async def is_cancelled() -> bool:
        return (await jobs_through_the_api(client))[0]["status"] == "CANCELLED"

    await wait_until(is_cancelled, 10)


async def test_a_client_of_the_api_that_goes_away_cancels_its_job(
    client: httpx.AsyncClient, portrait: bytes
) -> None:
    request = {"init_images": [b64encode(portrait).decode()], "steps": 150, "denoising_strength": 1}
    asking = asyncio.create_task(client.post("/sdapi/v1/img2img", json=request))

    async def is_running() -> bool:
        return bool((await client.get("/sdapi/v1/progress")).json()["progress"])

    await wait_until(is_running, 30)
    asking.cancel()
    await asyncio.wait({asking})

    async def is_cancelled() -> bool:
        return (await jobs_through_the_api(client))[0]["status"] == "CANCELLED"

    await wait_until(is_cancelled, 10)
