"""Workers: fetch a task's original, crop it, have an image generated, store it, and report progress."""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from threading import Event
from time import perf_counter
from typing import ClassVar, TypeVar

import structlog
from PIL import Image
from structlog.contextvars import bound_contextvars

from avatarforge.background import Backoff, BlockingPool, retry
from avatarforge.diffusion.engines.engine import EngineRequest, EngineResult, EngineStep
from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.domain.errors import (
    AvatarForgeError,
    DamagedPhoto,
    DeviceFailed,
    InvalidRequest,
    ModelMissing,
    ObjectNotFound,
    RemoteFailed,
    RemoteUnavailable,
    SigningFailed,
    StorageUnavailable,
)
from avatarforge.domain.generations import (
    ORIGINAL_MISSING,
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import Crop, GenerationParameters, JobError, Outcome, Stage, StoredImage
from avatarforge.imaging.crop import cut
from avatarforge.imaging.decode import load_upright
from avatarforge.imaging.provenance import ContentCredentials
from avatarforge.storage import ObjectStorage
from avatarforge.storage.keys import avatar_key
from avatarforge.telemetry import traces

log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedImage:
    """An image, and how it was made."""

    image: Image.Image
    crop: Crop
    model: str
    timings: Mapping[Stage, float] = field(default_factory=dict)
    """Seconds of the stages between fetching and storing."""


class TaskWorker(ABC):
    """Fetches, crops, has an image generated, encodes and uploads; any number of tasks at a time.

    Blocking work runs in threads, so that the next task's photo is ready when the engine is.
    """

    BACKEND: ClassVar[str]
    """The backend's name in jobs."""
    PROGRESS_INTERVAL_SECONDS = 0.25
    """At most four updates a second are sent."""
    HEARTBEAT_SECONDS = 5.0
    """The last update is sent again after so long without a new one."""
    # Uneven delays, so that many replicas do not come back in the same moment.
    STORAGE_BACKOFF = Backoff(0.5, 15.0, has_jitter=True)
    """The delays of retries while storage does not answer."""
    MAX_STORAGE_CALLS = 32
    """Concurrent calls of storage."""

    def __init__(
        self,
        storage: ObjectStorage,
        storage_retry_seconds: float,
        content_credentials: ContentCredentials | None,
    ) -> None:
        self._storage = storage
        self._storage_retry_seconds = storage_retry_seconds
        self._content_credentials = content_credentials or ContentCredentials()
        # Threads of its own: those that wait for slow storage must not keep photos from being cropped.
        self._storage_pool = BlockingPool(self.MAX_STORAGE_CALLS, "storage")

    @abstractmethod
    async def _generate_image(self, generation: "Generation", original: bytes) -> GeneratedImage:
        """Generate the task's image. Reports steps through `generation`; stops when it is cancelled."""

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Yield progress while it works or waits, and at last the result or the failure, whatever it was.

        Closing the generator stops the image at its next step; nothing of it stays in storage.
        """
        generation = Generation(task)
        work = asyncio.create_task(self._run(generation))
        try:
            sent, sent_at = generation.progress, perf_counter()
            yield sent
            while not work.done():
                await asyncio.wait({work}, timeout=self.PROGRESS_INTERVAL_SECONDS)
                silence = perf_counter() - sent_at
                if generation.progress != sent or silence >= self.HEARTBEAT_SECONDS:
                    sent, sent_at = generation.progress, perf_counter()
                    yield replace(sent, preview=generation.take_preview())
            yield work.result()
        finally:
            generation.abandoned.set()
            work.cancel()
            await asyncio.wait({work})

    async def _run(self, generation: "Generation") -> GenerationFinished | GenerationFailed:
        task = generation.task
        identity: dict[str, str | int] = {
            "job_id": task.job_id,
            "customer_id": task.customer_id,
            "attempt": task.attempt,
        }
        with (
            bound_contextvars(**identity, **task.parameters.origin),
            traces.span("generate", task.traceparent, "server", identity),
        ):
            return await self._run_to_end(generation)

    async def _run_to_end(self, generation: "Generation") -> GenerationFinished | GenerationFailed:
        try:
            return GenerationFinished(outcome=await self._process(generation))
        except ObjectNotFound as error:
            return _create_failure(ORIGINAL_MISSING, f"The original is gone: {error}")
        except (StorageUnavailable, DeviceFailed, SigningFailed, RemoteFailed, RemoteUnavailable) as error:
            log.warning("generation given back", reason=str(error))
            given_back = _create_failure(error.code, str(error), retryable=True)
            if isinstance(error, RemoteUnavailable):
                return replace(given_back, away_seconds=error.away_seconds)
            return given_back
        except ModelMissing as error:
            log.warning("generation given back", reason=str(error))
            # Not the job's fault, and not held against it: another replica may have a model.
            return replace(_create_failure(error.code, str(error), retryable=True), away_seconds=0.0)
        except AvatarForgeError as error:
            return _create_failure(error.code, str(error))
        except Exception as error:
            # The edge of a job: a fault of ours must end this attempt, not the replica.
            log.error("generation broke", exc_info=error)
            return _create_failure(
                AvatarForgeError.code, f"The worker met a fault ({type(error).__name__}).", retryable=True
            )

    async def _process(self, generation: "Generation") -> Outcome:
        task, seconds = generation.task, generation.seconds
        since, began = time.time(), perf_counter()
        original = await self._retry_storage(lambda: self._storage.get(task.original.key))
        seconds[Stage.FETCH] = perf_counter() - began
        generated = await self._generate_image(generation, original)
        seconds.update(generated.timings)
        began = perf_counter()
        avatar = await self._upload_avatar(generation, generated.image)
        seconds[Stage.UPLOAD] = perf_counter() - began
        _record_spans(generation, since)
        return Outcome(
            avatar=avatar,
            model=generated.model,
            backend=self.BACKEND,
            crop=generated.crop,
            timings={stage.value: round(taken, 6) for stage, taken in seconds.items()},
        )

    async def _build_request(
        self, generation: "Generation", original: bytes, manifest: Manifest
    ) -> tuple[EngineRequest, Crop]:
        """Build the engine's request from the task's parameters and the manifest's defaults.

        Also returns how the photo was cropped. Raises `InvalidRequest` and `DamagedPhoto`.
        """
        parameters, defaults = generation.task.parameters, manifest.defaults
        # First: a request with an unknown style or sampler needs no decoding.
        steps = defaults.steps if parameters.steps is None else parameters.steps
        prompt = manifest.build_prompt(parameters.style, parameters.prompt)
        manifest.check_parameters(parameters)
        began = perf_counter()
        image, crop = await asyncio.to_thread(_prepare_photo, original, manifest.size, parameters)
        generation.seconds[Stage.FETCH] += perf_counter() - began
        request = EngineRequest(
            image=image,
            prompt=prompt,
            negative_prompt=parameters.negative_prompt or defaults.negative_prompt,
            seed=parameters.seed,
            strength=_default_strength(steps, manifest)
            if parameters.strength is None
            else parameters.strength,
            steps=steps,
            guidance=defaults.guidance if parameters.guidance is None else parameters.guidance,
            image_guidance=(
                defaults.image_guidance if parameters.image_guidance is None else parameters.image_guidance
            ),
            sampler=parameters.sampler,
        )
        return request, crop

    async def _upload_avatar(self, generation: "Generation", image: Image.Image) -> StoredImage:
        task = generation.task
        image_format = task.parameters.format
        key = avatar_key(task.customer_id, task.job_id, task.attempt, image_format)
        content = await asyncio.to_thread(self._content_credentials.encode, image, image_format)

        def put() -> None:
            self._storage.put(key, BytesIO(content), image_format.media_type)
            # A thread cannot be stopped: if the task was cancelled during the write, the object goes again.
            if generation.abandoned.is_set():
                self._storage.delete(key)

        await self._retry_storage(put)
        return StoredImage(
            key=key,
            media_type=image_format.media_type,
            size=len(content),
            sha256=sha256(content).hexdigest(),
            width=image.width,
            height=image.height,
        )

    async def _retry_storage(self, call: Callable[[], _Result]) -> _Result:
        """Run the call in a thread; repeat it while storage does not answer, until the time is over."""

        def log_retry(error: StorageUnavailable, delay: float) -> None:
            log.warning("storage does not answer", reason=error.reason, again_in=round(delay, 2))

        return await retry(
            lambda: self._storage_pool.run(call),
            StorageUnavailable,
            self.STORAGE_BACKOFF,
            timeout_seconds=self._storage_retry_seconds,
            on_error=log_retry,
        )


def _record_spans(generation: "Generation", since: float) -> None:
    """Record a span for each stage of an image just stored. Fetching came first, and the others end now, one
    after the other: only between the two there was waiting, for a model and for a place in the batch."""
    seconds, ended = generation.seconds, time.time()
    traces.record(Stage.FETCH.value, None, since, since + seconds.get(Stage.FETCH, 0.0))
    for stage in (Stage.UPLOAD, Stage.DECODE, Stage.STEPS, Stage.ENCODE):
        if stage in seconds:
            traces.record(stage.value, None, ended - seconds[stage], ended)
            ended -= seconds[stage]


class Generation:
    """The state of a task, shared between the worker and the generator that reports it."""

    def __init__(self, task: GenerationTask) -> None:
        self.task = task
        self.progress = GenerationProgress()
        self.preview: bytes | None = None
        self.seconds: dict[Stage, float] = {}
        self.abandoned = Event()

    def take_preview(self) -> bytes | None:
        """Return the newest preview; each is sent once."""
        preview, self.preview = self.preview, None
        return preview


def _prepare_photo(
    original: bytes, model_size: int, parameters: GenerationParameters
) -> tuple[Image.Image, Crop]:
    try:
        photo = load_upright(original)
    # Pillow's decoders raise errors of many kinds; all mean that the original was damaged in storage.
    except Exception as error:
        raise DamagedPhoto("The original", "its data are broken, or cut off") from error
    return cut(photo, parameters.size(model_size), parameters)


def _default_strength(steps: int, manifest: Manifest) -> float:
    """Return the manifest's strength, but never so little that none of the steps is left.

    Few steps are all right for an upload to a model without strength, and another may serve by now.
    """
    return min(1.0, max(manifest.defaults.strength, math.nextafter(1 / steps, 2)))


def _create_failure(code: str, message: str, *, retryable: bool = False) -> GenerationFailed:
    return GenerationFailed(error=JobError(code=code, message=message), retryable=retryable)


ModelSource = Callable[[], AbstractAsyncContextManager[LoadedModel]]
"""Leases the model for one generation, as soon as there is one."""


class GenerationWorker(TaskWorker):
    """Generates with the serving model. Only its engine's thread denoises; all else runs in other threads."""

    BACKEND = "local"

    def __init__(
        self,
        storage: ObjectStorage,
        models: ModelSource,
        storage_retry_seconds: float,
        content_credentials: ContentCredentials | None = None,
    ) -> None:
        """Avatars are encoded by `content_credentials`; without it they are not signed."""
        super().__init__(storage, storage_retry_seconds, content_credentials)
        self._models = models

    async def _generate_image(self, generation: Generation, original: bytes) -> GeneratedImage:
        async with self._models() as model:
            request, crop = await self._build_request(generation, original, model.manifest)
            try:
                result = await _run_engine(model, request, generation)
            except InvalidRequest as error:
                raise _name_client_text(error, generation.task.parameters) from error
        return GeneratedImage(
            image=result.image, crop=crop, model=model.manifest.name, timings=result.timings
        )


def _name_client_text(error: InvalidRequest, parameters: GenerationParameters) -> InvalidRequest:
    """Return an engine's refusal of a prompt with what the client wrote, which a style puts words around."""
    if error.name != "prompt" or parameters.style is None:
        return error
    return InvalidRequest(error.name, parameters.prompt, f"{error.expected}, the words of its style included")


async def _run_engine(model: LoadedModel, request: EngineRequest, generation: Generation) -> EngineResult:
    async with aclosing(model.engine.generate(request)) as updates:
        async for update in updates:
            match update:
                case EngineStep(step=step, total_steps=total_steps, preview=preview):
                    generation.progress = GenerationProgress(step=step, total_steps=total_steps)
                    generation.preview = preview or generation.preview
                case EngineResult():
                    return update
    raise AssertionError("an engine's generator ends with a result or an error")
