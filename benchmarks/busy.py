"""Whether the device waits for storage: a replica's worker over a folder that answers late."""

import asyncio
import hashlib
import time
from pathlib import Path
from statistics import median
from typing import BinaryIO

from avatarforge.diffusion.models.loader import LoadedModel, ModelLoader
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.domain.generations import GenerationFinished, GenerationTask
from avatarforge.domain.jobs import GenerationParameters, StoredImage, new_job_id
from avatarforge.settings import load_settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.keys import original_key
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.report import Figure, Report, Table

DELAY = 0.2
"""Seconds before storage answers."""


def run(options: Options) -> Report:
    pictures = options.size(64, 8)
    rounds = options.repeat(3)
    settings = load_settings(environ={}).diffusion
    slots = settings.max_batch + settings.prefetch
    turns = asyncio.run(_turns(options.folder, pictures, rounds, slots))
    return Report(
        title=f"Busy: {pictures} pictures from a replica whose storage answers {1000 * DELAY:g} ms late",
        figures=[
            Figure(
                name="device busy, median",
                value=100 * median(busy for _, busy in turns),
                unit="% of the time",
                wanted="≥ 95",
            ),
            Figure(name="device busy, least", value=100 * min(busy for _, busy in turns), unit="%"),
            Figure(name="pictures a second, median", value=median(rate for rate, _ in turns), unit="1/s"),
        ],
        conditions={
            "worker": f"avatar-mini, as a Stable Diffusion replica runs it, {slots} tasks at a time: fetch, "
            "face search, square, generation, PNG, upload; no Ray, no database",
            "storage": f"a folder; every get and put takes {1000 * DELAY:g} ms longer",
            "busy": "the engine's own count of the time that went into pictures, over the time from the "
            "first task to the last result, so that the first fetch and the last upload count as waiting",
        },
        tables=[
            Table(
                title="By turn",
                columns=("turn", "pictures a second", "busy"),
                rows=[(number, rate, busy) for number, (rate, busy) in enumerate(turns, 1)],
            )
        ],
    )


class _SlowFolder(FolderStorage):
    """A folder as far away as a bucket on another continent."""

    def get(self, key: str) -> bytes:
        time.sleep(DELAY)
        return super().get(key)

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        time.sleep(DELAY)
        super().put(key, content, media_type)


async def _turns(folder: Path, pictures: int, rounds: int, slots: int) -> list[tuple[float, float]]:
    """Pictures a second, and the share of the time that the device was busy."""
    settings = load_settings(environ={}).diffusion
    manager = ModelManager(settings.model, ModelLoader(settings))
    manager.start()
    storage = _SlowFolder(folder / "objects")
    worker = GenerationWorker(storage, manager.lease, settings.storage_retry_seconds)
    try:
        async with manager.lease() as model:
            await _turn(worker, model, storage, slots, slots)
            return [await _turn(worker, model, storage, pictures, slots) for _ in range(rounds)]
    finally:
        await manager.close()


async def _turn(
    worker: GenerationWorker, model: LoadedModel, storage: FolderStorage, pictures: int, slots: int
) -> tuple[float, float]:
    tasks = [_task(storage, number) for number in range(pictures)]
    free = asyncio.Semaphore(slots)

    async def work(task: GenerationTask) -> None:
        async with free:
            async for update in worker.generate(task):
                last = update
        if not isinstance(last, GenerationFinished):
            raise RuntimeError(f"A picture was not made: {last}")

    before, begun = model.engine.report().busy_seconds, time.perf_counter()
    await asyncio.gather(*map(work, tasks))
    seconds = time.perf_counter() - begun
    return pictures / seconds, (model.engine.report().busy_seconds - before) / seconds


def _task(storage: FolderStorage, seed: int) -> GenerationTask:
    job_id, content = new_job_id(), SAMPLE_PORTRAIT.read_bytes()
    key = original_key("bench", job_id, "image/png")
    with SAMPLE_PORTRAIT.open("rb") as file:
        FolderStorage.put(storage, key, file, "image/png")
    return GenerationTask(
        job_id=job_id,
        customer_id="bench",
        attempt=1,
        original=StoredImage(
            key=key,
            media_type="image/png",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            width=512,
            height=512,
        ),
        parameters=GenerationParameters(seed=seed),
    )
