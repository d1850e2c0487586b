"""Loads a model: from its manifest to an engine that has generated its first image."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final
from weakref import WeakSet

import structlog
from PIL import Image

from avatarforge.diffusion.engines.engine import Engine, EngineRequest, EngineStep
from avatarforge.diffusion.engines.sequential import SequentialEngine
from avatarforge.diffusion.models import pipelines
from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.diffusion.models.weights import estimate_gpu_bytes, fits_in_memory
from avatarforge.domain.errors import DeviceLost, ImageWithheld, ModelUnusable
from avatarforge.settings import DiffusionSettings

log = structlog.get_logger(__name__)

_FIRST_IMAGE_STEPS: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to serve."""

    manifest: Manifest
    engine: Engine
    dtype: str
    seconds: Mapping[str, float]
    """The time of starting by phase: `import` of the libraries, for the first model; `read` of the weights
    onto the device; `measure`, with compilation; and `first_image`."""
    kind: str = ""
    """The checkpoint's architecture and training, in words."""
    strength_skips_steps: bool = True
    """`int(steps x strength)` steps are run; else all of them are."""


class ModelLoader:
    """Loads models with the device, number format, threads and niceness of the settings."""

    def __init__(self, settings: DiffusionSettings) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.models_dir)
        self._engines: WeakSet[Engine] = WeakSet()
        self._import_seconds = 0.0

    async def prepare(self) -> None:
        """Import what every model needs, in a thread; takes seconds, and can run before a model is known."""
        began = perf_counter()
        await asyncio.to_thread(pipelines.import_libraries, self._settings.threads)
        self._import_seconds = perf_counter() - began

    async def read_manifest(self, name: str) -> Manifest:
        """Read the manifest anew. Raises `ModelUnusable`."""
        return await asyncio.to_thread(self._catalogue.read, name)

    async def fits_beside(self, manifest: Manifest) -> bool:
        """Return whether memory holds the model beside what is loaded now: as the setting says, or by the
        size of its weights and the free memory of the GPU."""
        if self._settings.swap != "auto":
            return self._settings.swap == "beside"
        return await asyncio.to_thread(self._fits, manifest)

    async def load(self, manifest: Manifest) -> LoadedModel:
        """Load the model beside what runs, and generate one image with it. Raises `ModelUnusable`."""
        name = manifest.name
        began = perf_counter()
        engine, dtype, kind = await asyncio.to_thread(self._load_engine, manifest)
        self._engines.add(engine)
        read = perf_counter()
        try:
            await engine.warm_up(manifest.size, manifest.defaults.guidance)
            measured = perf_counter()
            await _generate_first_image(engine, manifest)
        except BaseException as error:
            await asyncio.to_thread(engine.close)
            if isinstance(error, Exception):
                raise ModelUnusable(name, f"it makes no image ({error})") from error
            raise
        seconds = {"read": read - began, "measure": measured - read, "first_image": perf_counter() - measured}
        if self._import_seconds:
            seconds, self._import_seconds = {"import": self._import_seconds, **seconds}, 0.0
        return LoadedModel(
            manifest=manifest,
            engine=engine,
            dtype=dtype,
            kind=kind,
            seconds=seconds,
            strength_skips_steps=engine.count_steps(10, 0.5) < 10,
        )

    def check_engines(self) -> DeviceLost | None:
        """Return why the device cannot be used any more, if an engine has met it or stands still.

        Call it every `CHECK_INTERVAL_SECONDS`. Covers the engines that are being loaded or drained, too.
        """
        for engine in tuple(self._engines):
            step_seconds = max(engine.report().step_seconds.values(), default=None)
            silence = engine.watchdog.check(self._settings.stall_timeout_seconds, step_seconds)
            if silence is not None and engine.device_error is None:
                reason = f"it has work, and has made no step for {silence:.0f} seconds."
                engine.fail_device(DeviceLost(engine.device, reason))
            if engine.device_error is not None:
                return engine.device_error
        return None

    async def free_memory(self) -> None:
        """Free the memory of models that nobody refers to any more."""
        await asyncio.to_thread(pipelines.free_memory)

    def _pick_device(self) -> str:
        return pipelines.pick_device(self._settings.device, has_gpu=self._settings.num_gpus > 0)

    def _fits(self, manifest: Manifest) -> bool:
        device = self._pick_device()
        if not device.startswith("cuda"):
            return True
        dtype = pipelines.pick_dtype(self._settings.dtype, manifest, device)
        pipelines.free_memory()
        weights, free = estimate_gpu_bytes(manifest, dtype.itemsize), pipelines.get_free_bytes(device)
        log.info("memory for one more model", model=manifest.name, weights=weights, free=free)
        return fits_in_memory(weights, free)

    def _load_engine(self, manifest: Manifest) -> tuple[Engine, str, str]:
        """Return the engine, its number format, and the kind of the checkpoint."""
        settings = self._settings
        device = self._pick_device()
        dtype = pipelines.pick_dtype(settings.dtype, manifest, device)
        pipeline = pipelines.load(
            manifest,
            device,
            dtype,
            allow_pickle=settings.allow_pickle,
            allow_remote_code=settings.allow_remote_code,
        )
        manifest.capabilities.check(manifest.name, type(pipeline))
        kind = pipelines.describe_kind(pipeline)
        return _create_engine(pipeline, manifest, settings, device), str(dtype).removeprefix("torch."), kind


def _create_engine(pipeline: Any, manifest: Manifest, settings: DiffusionSettings, device: str) -> Engine:
    """Create the engine that suits the pipeline. Its modules import torch, so they are imported late."""
    from avatarforge.diffusion.engines.architectures import find_architecture
    from avatarforge.diffusion.engines.batching import BatchingEngine

    threads = pipelines.count_threads(settings.threads)
    niceness = settings.niceness if device == "cpu" else 0
    schedulers = pipelines.create_schedulers(manifest, pipeline)
    # Parts that come and go are not thread-safe.
    if pipelines.is_offloaded(manifest, device) or find_architecture(pipeline) is None:
        if manifest.prompt_weights != "none":
            raise ModelUnusable(
                manifest.name,
                "its manifest has prompt_weights, which a model has not that makes images singly",
            )
        return SequentialEngine(
            pipeline,
            manifest.name,
            threads=threads,
            niceness=niceness,
            device=device,
            schedulers=schedulers,
            guidance_rescale=manifest.guidance_rescale,
        )
    if manifest.prompt_weights != "none" and not (pipeline.tokenizer or pipeline.tokenizer_2).is_fast:
        raise ModelUnusable(
            manifest.name,
            "its manifest has prompt_weights, which need a tokenizer that tells where its tokens are in the "
            "text; the checkpoint's does not",
        )
    return BatchingEngine(
        pipeline,
        manifest.name,
        threads=threads,
        niceness=niceness,
        max_batch=settings.max_batch,
        compilation=settings.compile,
        schedulers=schedulers,
        prompt_weights=manifest.prompt_weights,
        guidance_rescale=manifest.guidance_rescale,
    )


async def _generate_first_image(engine: Engine, manifest: Manifest) -> None:
    """Begin an image with the manifest's defaults, and finish one of few steps.

    So whatever is broken at the first request is so before a job, without the minutes that all steps of a
    large model take on a CPU.
    """
    defaults = manifest.defaults
    request = EngineRequest(
        image=Image.new("RGB", (manifest.size, manifest.size), (128, 128, 128)),
        prompt=manifest.build_prompt(None, ""),
        negative_prompt=defaults.negative_prompt,
        seed=0,
        strength=defaults.strength,
        steps=defaults.steps,
        guidance=defaults.guidance,
        image_guidance=defaults.image_guidance,
    )
    # A safety checker may take the grey square for anything: that says nothing of photos.
    with suppress(ImageWithheld):
        if engine.count_steps(request.steps, request.strength) > _FIRST_IMAGE_STEPS:
            await _run_first_step(engine, request)
            request = replace(request, steps=_FIRST_IMAGE_STEPS, strength=1.0)
        await engine.generate_image(request)


async def _run_first_step(engine: Engine, request: EngineRequest) -> None:
    """Generate the request's image until its first step is done."""
    async with aclosing(engine.generate(request)) as updates:
        async for update in updates:
            if not isinstance(update, EngineStep) or update.step > 0:
                return
