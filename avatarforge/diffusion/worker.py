"""One task from its original in storage to its avatar there, made by the engine of this process."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing

from avatarforge.diffusion.engine import EngineRequest, EngineResult, EngineStep
from avatarforge.diffusion.loading import LoadedModel
from avatarforge.diffusion.provenance import Marking
from avatarforge.diffusion.tasks import Generation, Made, TaskWorker
from avatarforge.domain.generations import GenerationProgress
from avatarforge.storage import ObjectStorage

ModelSource = Callable[[], AbstractAsyncContextManager[LoadedModel]]
"""Gives the model for one generation, when there is one."""


class GenerationWorker(TaskWorker):
    """Only the engine's thread denoises. All else runs in other threads beside it."""

    BACKEND = "local"

    def __init__(
        self,
        storage: ObjectStorage,
        models: ModelSource,
        storage_patience: float,
        marking: Marking | None = None,
    ) -> None:
        """Avatars are marked by `marking`; without one they are not signed."""
        super().__init__(storage, storage_patience, marking)
        self._models = models

    async def _made(self, generation: Generation, original: bytes) -> Made:
        async with self._models() as model:
            request, crop = await self._request(generation, original, model.manifest)
            result = await _generated(model, request, generation)
        return Made(image=result.image, crop=crop, model=model.manifest.name, timings=result.timings)


async def _generated(model: LoadedModel, request: EngineRequest, generation: Generation) -> EngineResult:
    async with aclosing(model.engine.generate(request)) as updates:
        async for update in updates:
            match update:
                case EngineStep(step=step, total_steps=total_steps, preview=preview):
                    generation.progress = GenerationProgress(step=step, total_steps=total_steps)
                    generation.preview = preview or generation.preview
                case EngineResult():
                    return update
    raise AssertionError("an engine's generator ends with a result or an error")
