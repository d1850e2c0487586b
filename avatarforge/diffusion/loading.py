"""From a model's name to an engine that has made its first picture."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from PIL import Image

from avatarforge.diffusion import pipelines
from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.diffusion.engine import Engine, EngineRequest
from avatarforge.diffusion.sequential import SequentialEngine
from avatarforge.domain.errors import ModelUnusable
from avatarforge.settings import DiffusionSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that serves."""

    manifest: Manifest
    engine: Engine
    dtype: str
    seconds: Mapping[str, float]
    """What starting took: `load` (with imports not made before) and `warm_up`."""


class ModelLoader:
    """Loads models as the settings want them: device, number format, threads, niceness."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.models_dir)

    async def prepare(self) -> None:
        """Import what every model needs, in a thread: seconds in which no model needs to be named yet."""
        await asyncio.to_thread(pipelines.import_libraries, self._settings.threads)

    async def load(self, name: str) -> LoadedModel:
        """Load the model beside what runs, and make one picture with it. Raises `ModelUnusable`."""
        manifest = self._catalogue.manifest(name)
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
        return LoadedModel(manifest=manifest, engine=engine, dtype=dtype, seconds=seconds)

    def _engine(self, manifest: Manifest) -> tuple[Engine, str]:
        wanted = self._settings
        device = pipelines.pick_device(wanted.device, gpu_set_aside=wanted.num_gpus > 0)
        dtype = pipelines.pick_dtype(wanted.dtype, manifest, device)
        pipeline = pipelines.load(
            manifest,
            device,
            dtype,
            allow_pickle=wanted.allow_pickle,
            allow_remote_code=wanted.allow_remote_code,
        )
        return _engine(pipeline, manifest.name, wanted, device), str(dtype).removeprefix("torch.")


def _engine(pipeline: Any, name: str, settings: DiffusionSettings, device: str) -> Engine:
    """The engine that suits the pipeline. Its modules import torch, so they are imported late."""
    from avatarforge.diffusion.batching import BatchingEngine
    from avatarforge.diffusion.families import family_of

    threads = pipelines.cpu_threads(settings.threads)
    niceness = settings.niceness if device == "cpu" else 0
    if family_of(pipeline) is None:
        return SequentialEngine(pipeline, name, threads=threads, niceness=niceness)
    return BatchingEngine(
        pipeline,
        name,
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
