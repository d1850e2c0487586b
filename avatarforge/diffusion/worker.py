"""One task from its original in storage to its avatar there."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from hashlib import sha256
from io import BytesIO
from threading import Event
from time import perf_counter
from typing import TypeVar

import structlog
from PIL import Image

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.engine import EngineRequest, EngineResult, EngineStep
from avatarforge.diffusion.loading import LoadedModel
from avatarforge.diffusion.squares import square
from avatarforge.domain.errors import (
    AvatarForgeError,
    DamagedPhoto,
    DeviceFailed,
    ObjectNotFound,
    StorageUnavailable,
)
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import Crop, ImageFormat, JobError, Outcome, Stage, StoredImage
from avatarforge.storage import ObjectStorage
from avatarforge.storage.keys import avatar_key
from avatarforge.storage.pictures import load_upright

log = structlog.get_logger(__name__)

BACKEND = "local"

ModelSource = Callable[[], AbstractAsyncContextManager[LoadedModel]]
"""Gives the model for one generation, when there is one."""

_Answer = TypeVar("_Answer")

_SAVED = {
    ImageFormat.PNG: {},
    ImageFormat.WEBP: {"quality": 92},
    ImageFormat.JPEG: {"quality": 92, "subsampling": 0},
}


class GenerationWorker:
    """Fetches, cuts, generates, encodes and uploads; any number of tasks at a time.

    Only the engine's thread denoises. All else runs in other threads beside it, so that the next task's
    photo is ready when the engine is.
    """

    PROGRESS = 0.25
    """Seconds between two updates: at most four a second travel."""
    HEARTBEAT = 5.0
    """Seconds of silence after which the last update is sent again."""
    FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
    """Seconds before storage that does not answer is asked again; they double each time."""

    def __init__(self, storage: ObjectStorage, models: ModelSource, storage_patience: float) -> None:
        self._storage = storage
        self._models = models
        self._patience = storage_patience

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Progress while it works or waits; the last item is how it ended, whatever went wrong.

        Closing the generator stops the picture at its next step; nothing of it stays in storage.
        """
        generation = _Generation(task)
        work = asyncio.create_task(self._result(generation))
        try:
            shown, shown_at = generation.progress, perf_counter()
            yield shown
            while not work.done():
                await asyncio.wait({work}, timeout=self.PROGRESS)
                silence = perf_counter() - shown_at
                if generation.progress != shown or silence >= self.HEARTBEAT:
                    shown, shown_at = generation.progress, perf_counter()
                    yield shown
            yield work.result()
        finally:
            generation.abandoned.set()
            work.cancel()
            await asyncio.wait({work})

    async def _result(self, generation: "_Generation") -> GenerationFinished | GenerationFailed:
        task = generation.task
        try:
            return GenerationFinished(outcome=await self._outcome(generation))
        except ObjectNotFound as error:
            return _failed("original_missing", f"The original is gone: {error}")
        except (StorageUnavailable, DeviceFailed) as error:
            log.warning("generation given back", job_id=task.job_id, attempt=task.attempt, reason=str(error))
            return _failed(error.code, str(error), retryable=True)
        except AvatarForgeError as error:
            return _failed(error.code, str(error))
        except Exception as error:
            # The edge of a job: a fault of ours must end this attempt, not the replica.
            log.error("generation broke", job_id=task.job_id, attempt=task.attempt, exc_info=error)
            return _failed(
                AvatarForgeError.code, f"The worker met a fault ({type(error).__name__}).", retryable=True
            )

    async def _outcome(self, generation: "_Generation") -> Outcome:
        task, seconds = generation.task, generation.seconds
        begun = perf_counter()
        original = await self._patiently(lambda: self._storage.get(task.original.key))
        seconds[Stage.FETCH] = perf_counter() - begun
        async with self._models() as model:
            # Asked first: words that no model understands need no decoding.
            prompt = model.manifest.prompt_for(task.parameters.style, task.parameters.prompt)
            begun = perf_counter()
            picture, crop = await asyncio.to_thread(_prepared, original, model.manifest.size)
            seconds[Stage.FETCH] += perf_counter() - begun
            request = _request(task, model.manifest, picture, prompt)
            result = await self._made(model, request, generation)
        seconds.update(result.timings)
        begun = perf_counter()
        avatar = await self._upload(generation, result.image)
        seconds[Stage.UPLOAD] = perf_counter() - begun
        return Outcome(
            avatar=avatar,
            model=model.manifest.name,
            backend=BACKEND,
            crop=crop,
            timings={stage.value: round(taken, 6) for stage, taken in seconds.items()},
        )

    async def _made(
        self, model: LoadedModel, request: EngineRequest, generation: "_Generation"
    ) -> EngineResult:
        async with aclosing(model.engine.generate(request)) as updates:
            async for update in updates:
                match update:
                    case EngineStep(step=step, total_steps=total_steps):
                        generation.progress = GenerationProgress(step=step, total_steps=total_steps)
                    case EngineResult():
                        return update
        raise AssertionError("an engine's generator ends with a result or an error")

    async def _upload(self, generation: "_Generation", image: Image.Image) -> StoredImage:
        task = generation.task
        image_format = task.parameters.format
        key = avatar_key(task.customer_id, task.job_id, task.attempt, image_format)
        content = await asyncio.to_thread(_encoded, image, image_format)

        def put() -> None:
            self._storage.put(key, BytesIO(content), image_format.media_type)
            # A thread cannot be stopped: who was given up while it wrote takes its object away again.
            if generation.abandoned.is_set():
                self._storage.delete(key)

        await self._patiently(put)
        return StoredImage(
            key=key,
            media_type=image_format.media_type,
            size=len(content),
            sha256=sha256(content).hexdigest(),
            width=image.width,
            height=image.height,
        )

    async def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """What storage answers, in a thread; asked again with growing pauses until patience ends."""
        given_up_at = perf_counter() + self._patience
        pause = self.FIRST_PAUSE
        while True:
            try:
                return await asyncio.to_thread(ask)
            except StorageUnavailable as error:
                # Uneven pauses, so that many replicas do not come back in the same moment.
                uneven = pause * random.uniform(0.5, 1)
                if perf_counter() + uneven > given_up_at:
                    raise
                log.warning("storage does not answer", reason=error.reason, again_in=round(uneven, 2))
                await asyncio.sleep(uneven)
                pause = min(2 * pause, self.LONGEST_PAUSE)


class _Generation:
    """A task on its way, shared between the one who works and the one who tells."""

    def __init__(self, task: GenerationTask) -> None:
        self.task = task
        self.progress = GenerationProgress()
        self.seconds: dict[Stage, float] = {}
        self.abandoned = Event()


def _request(task: GenerationTask, manifest: Manifest, picture: Image.Image, prompt: str) -> EngineRequest:
    """The task's wishes, with the manifest's defaults for what it leaves open."""
    wanted, defaults = task.parameters, manifest.defaults
    return EngineRequest(
        image=picture,
        prompt=prompt,
        negative_prompt=wanted.negative_prompt or defaults.negative_prompt,
        seed=wanted.seed,
        strength=defaults.strength if wanted.strength is None else wanted.strength,
        steps=defaults.steps if wanted.steps is None else wanted.steps,
        guidance=defaults.guidance if wanted.guidance is None else wanted.guidance,
    )


def _prepared(original: bytes, size: int) -> tuple[Image.Image, Crop]:
    try:
        photo = load_upright(original)
    # Pillow's decoders raise errors of many kinds; all mean that the original was damaged in storage.
    except Exception as error:
        raise DamagedPhoto("The original", f"{type(error).__name__}: {error}") from error
    return square(photo, size)


def _encoded(image: Image.Image, image_format: ImageFormat) -> bytes:
    """The picture as a file. Pixels only: nothing that the original carried."""
    buffer = BytesIO()
    image.save(buffer, format=image_format.value, **_SAVED[image_format])
    return buffer.getvalue()


def _failed(code: str, message: str, *, retryable: bool = False) -> GenerationFailed:
    return GenerationFailed(error=JobError(code=code, message=message), retryable=retryable)
