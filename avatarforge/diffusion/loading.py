"""From a model's name to an engine that has made its first picture."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import structlog
from PIL import Image

from avatarforge.diffusion import pipelines
from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.diffusion.engine import Engine, EngineRequest
from avatarforge.diffusion.memory import bytes_in_memory, holds_one_more
from avatarforge.diffusion.sequential import SequentialEngine
from avatarforge.domain.errors import ModelUnusable
from avatarforge.settings import DiffusionSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that serves."""

    manifest: Manifest
    engine: Engine
    dtype: str
    seconds: Mapping[str, float]
    """What starting took: `load` (with imports not made before) and `warm_up`."""
    strength_counts: bool = True
    """Whether `int(steps x strength)` steps are run; else all of them are."""


class ModelLoader:
    """Loads models as the settings want them: device, number format, threads, niceness."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.models_dir)

    async def prepare(self) -> None:
        """Import what every model needs, in a thread: seconds in which no model needs to be named yet."""
        await asyncio.to_thread(pipelines.import_libraries, self._settings.threads)

    async def manifest(self, name: str) -> Manifest:
        """The manifest as it reads now. Raises `ModelUnusable`."""
        return await asyncio.to_thread(self._catalogue.manifest, name)

    async def holds_beside(self, manifest: Manifest) -> bool:
        """Whether memory holds the model beside what is loaded now: as the setting says, or by the size of
        its weights and the free memory of the GPU."""
        if self._settings.swap != "auto":
            return self._settings.swap == "beside"
        return await asyncio.to_thread(self._fits, manifest)

    async def load(self, manifest: Manifest) -> LoadedModel:
        """Load the model beside what runs, and make one picture with it. Raises `ModelUnusable`."""
        name = manifest.name
        begun = perf_counter()
        engine, dtype = await asyncio.to_thread(self._engine, manifest)
        loaded = perf_counter()
        try:
            await engine.warm_up(manifest.size)
            await _make_one_picture(engine, manifest)
        except BaseException as error:
            engine.close()
            if isinstance(error, Exception):
                raise ModelUnusable(name, f"it makes no picture ({error})") from error
            raise
        seconds = {"load": loaded - begun, "warm_up": perf_counter() - loaded}
        return LoadedModel(
            manifest=manifest,
            engine=engine,
            dtype=dtype,
            seconds=seconds,
            strength_counts=engine.planned_steps(10, 0.5) < 10,
        )

    async def free(self) -> None:
        """Give the memory back of models that nobody refers to any more."""
        await asyncio.to_thread(pipelines.free_memory)

    def _device(self) -> str:
        return pipelines.pick_device(self._settings.device, gpu_set_aside=self._settings.num_gpus > 0)

    def _fits(self, manifest: Manifest) -> bool:
        device = self._device()
        if not device.startswith("cuda"):
            return True
        dtype = pipelines.pick_dtype(self._settings.dtype, manifest, device)
        pipelines.free_memory()
        weights, free = bytes_in_memory(manifest, dtype.itemsize), pipelines.free_bytes(device)
        log.info("memory for one more model", model=manifest.name, weights=weights, free=free)
        return holds_one_more(weights, free)

    def _engine(self, manifest: Manifest) -> tuple[Engine, str]:
        wanted = self._settings
        device = self._device()
        dtype = pipelines.pick_dtype(wanted.dtype, manifest, device)
        pipeline = pipelines.load(
            manifest,
            device,
            dtype,
            allow_pickle=wanted.allow_pickle,
            allow_remote_code=wanted.allow_remote_code,
        )
        manifest.capabilities.check(manifest.name, type(pipeline))
        return _engine(pipeline, manifest, wanted, device), str(dtype).removeprefix("torch.")


def _engine(pipeline: Any, manifest: Manifest, settings: DiffusionSettings, device: str) -> Engine:
    """The engine that suits the pipeline. Its modules import torch, so they are imported late."""
    from avatarforge.diffusion.batching import BatchingEngine
    from avatarforge.diffusion.families import family_of

    threads = pipelines.cpu_threads(settings.threads)
    niceness = settings.niceness if device == "cpu" else 0
    # Parts that come and go do not bear several threads.
    if pipelines.offloads(manifest, device) or family_of(pipeline) is None:
        return SequentialEngine(pipeline, manifest.name, threads=threads, niceness=niceness, device=device)
    return BatchingEngine(
        pipeline,
        manifest.name,
        threads=threads,
        niceness=niceness,
        max_batch=settings.max_batch,
        compilation=settings.compile,
    )


async def _make_one_picture(engine: Engine, manifest: Manifest) -> None:
    """Two steps: what is compiled, allocated or broken at the first call is so before a job comes."""
    request = EngineRequest(
        image=Image.new("RGB", (manifest.size, manifest.size), (128, 128, 128)),
        prompt=manifest.prompt_for(None, ""),
        seed=0,
        strength=1.0,
        steps=2,
        guidance=manifest.defaults.guidance,
    )
    async with aclosing(engine.generate(request)) as updates:
        async for _ in updates:
            pass
