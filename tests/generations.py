"""Tasks for a generation worker, and what it makes of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from typing import Any

from PIL import Image

from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import GenerationParameters
from avatarforge.storage.folder import FolderStorage
from tests.factories import a_job


def serving(model: LoadedModel) -> Any:
    @asynccontextmanager
    async def models() -> AsyncIterator[LoadedModel]:
        yield model

    return models


def portrait_file() -> bytes:
    """The sample portrait lying on its side, as a camera stores it, with an EXIF block that says so."""
    data = files("avatarforge").joinpath("samples/portrait.png").read_bytes()
    photo = Image.open(BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera's maker"
    buffer = BytesIO()
    photo.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def a_task(storage: FolderStorage, **parameters: Any) -> GenerationTask:
    job = a_job()
    original = replace(job.original, key=f"customers/ana/{job.job_id}/original.jpg")
    storage.put(original.key, BytesIO(portrait_file()), "image/jpeg")
    wanted = GenerationParameters(**{"seed": 1, "steps": 6, "strength": 0.5} | parameters)
    return GenerationTask(
        job_id=job.job_id, customer_id="ana", attempt=3, original=original, parameters=wanted
    )


async def all_of(worker: GenerationWorker, task: GenerationTask) -> list[GenerationUpdate]:
    return [update async for update in worker.generate(task)]


def avatars(storage: FolderStorage) -> list[str]:
    return [entry.key for entry in storage.list("customers/") if "avatar" in entry.key]
