"""Clients of AUTOMATIC1111's API."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.clients.runs import HERE, PYTHON, run
from tests.factories import a_manifest, write_model
from tests.integration.rest import a_jpeg
from tests.integration.service import running_service


def a_png() -> bytes:
    content = BytesIO()
    Image.new("RGB", (128, 128), "teal").save(content, "PNG")
    return content.getvalue()


CLIENTS = {
    "webuiapi": (PYTHON, HERE / "draw.py", "webuiapi"),
    "sd-backend-client": (PYTHON, HERE / "draw.py", "sd-backend-client"),
    "stable-diffusion-api": ("node", HERE / "draw.mjs"),
}


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_has_an_avatar_made(client: str, tmp_path: Path) -> None:
    photo = tmp_path / "me.jpg"
    photo.write_bytes(a_jpeg(128, 128))
    model = write_model(
        a_manifest(name="avatar-mini", scheduler="euler-ancestral", samplers=["DDIM"]), tmp_path
    )
    async with running_service(tmp_path, http={"sdapi": True}, diffusion=model) as service:
        service.generations.avatar = lambda task: a_png()
        # Some print what they do.
        told = json.loads((await run(*CLIENTS[client], service.url, photo)).splitlines()[-1])
        [job] = service.records.list_jobs("sdapi", None, 10)

    # The first by name, or what the client sends by itself.
    sampler, images = ("DDIM", 2) if client == "webuiapi" else ("Euler a", 1)
    assert told == {"sizes": [[128, 128]] * images, "seed": 5, "sampler": sampler}
    assert (job.parameters.prompt, job.parameters.seed) == ("smiling", 5)
