"""Workers: fetch a task's original, crop it, have its images generated, store them, and report progress."""

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
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import (
    AvatarImage,
    Crop,
    GenerationParameters,
    JobError,
    Outcome,
    Stage,
    StoredImage,
)
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
    seed: int
    style: str | None
    crop: Crop
    model: str
    timings: Mapping[Stage, float] = field(default_factory=dict)
    """Seconds of the stages between fetching and storing."""


class TaskWorker(ABC):
    """Fetches, crops, has images generated, encodes and uploads them; any number of tasks at a time.

    Blocking work runs in threads, so that the next task's photo is ready when the engine is. The images of a
    task are generated side by side.
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
    async def _generate_image(self, generation: "Generation", index: int, original: bytes) -> GeneratedImage:
        """Generate the task's image of this index. Reports steps through `generation`; stops when it is
        cancelled."""

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Yield progress while it works or waits, each of several images but the last once it is stored, and
        at last the result or the failure, whatever it was.

        An image that fails ends none of the others. Closing the generator stops what is being made at its
        next step; nothing stays in storage but images that were whole by then.
        """
        generation = Generation(task)
        work = asyncio.create_task(self._run(generation))
        try:
            sent, sent_at = generation.progress, perf_counter()
            yield sent
            while not work.done():
                await asyncio.wait({work}, timeout=self.PROGRESS_INTERVAL_SECONDS)
                while generation.unfinished and generation.stored:
                    yield GenerationImage(image=generation.stored.pop(0))
                silence = perf_counter() - sent_at
                has_news = generation.progress != sent or generation.has_preview
                if has_news or silence >= self.HEARTBEAT_SECONDS:
                    sent, sent_at = generation.progress, perf_counter()
                    yield generation.add_preview(sent)
            end = work.result()
            while generation.stored:
                yield GenerationImage(image=generation.stored.pop(0))
            yield end
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
        since, began = time.time(), perf_counter()
        try:
            original = await self._retry_storage(lambda: self._storage.get(generation.task.original.key))
        except Exception as error:
            return _describe_failure(error)
        generation.fetch_seconds = perf_counter() - began
        outcomes = await asyncio.gather(
            *(self._make_image(generation, index, original) for index in generation.task.missing),
            return_exceptions=True,
        )
        failures = [_describe_failure(end) for end in outcomes if isinstance(end, BaseException)]
        if failures:
            # Those that may yet be made come first: another attempt meets the others' faults again.
            return next((failure for failure in failures if failure.retryable), failures[0])
        assert generation.outcome is not None, "all images are there"
        _record_spans(generation.outcome, since)
        last = generation.stored.pop()
        return GenerationFinished(
            outcome=generation.outcome, image=last if generation.task.parameters.variants > 1 else None
        )

    async def _make_image(self, generation: "Generation", index: int, original: bytes) -> None:
        try:
            generated = await self._generate_image(generation, index, original)
            began = perf_counter()
            stored = await self._upload_avatar(generation, index, generated.image)
            seconds = {Stage.FETCH: generation.fetch_seconds, **generated.timings}
            seconds[Stage.UPLOAD] = perf_counter() - began
            generation.outcome = Outcome(
                avatar=stored,
                model=generated.model,
                backend=self.BACKEND,
                crop=generated.crop,
                timings={stage.value: round(taken, 6) for stage, taken in seconds.items()},
            )
            image = AvatarImage(index=index, seed=generated.seed, style=generated.style, stored=stored)
            generation.stored.append(image)
        finally:
            generation.finish_image(index)

    async def _build_request(
        self, generation: "Generation", parameters: GenerationParameters, original: bytes, manifest: Manifest
    ) -> tuple[EngineRequest, Crop]:
        """Build the engine's request from an image's parameters and the manifest's defaults.

        Also returns how the photo was cropped. Raises `InvalidRequest` and `DamagedPhoto`.
        """
        defaults = manifest.defaults
        # First: a request with an unknown style or sampler needs no decoding.
        steps = defaults.steps if parameters.steps is None else parameters.steps
        prompt = manifest.build_prompt(parameters.style, parameters.prompt)
        manifest.check_parameters(parameters)
        async with generation.preparing:
            if generation.photo is None:
                began = perf_counter()
                generation.photo = await asyncio.to_thread(
                    _prepare_photo, original, manifest.size, parameters
                )
                generation.fetch_seconds += perf_counter() - began
        image, crop = generation.photo
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

    async def _upload_avatar(self, generation: "Generation", index: int, image: Image.Image) -> StoredImage:
        task = generation.task
        image_format = task.parameters.format
        place = index if task.parameters.variants > 1 else None
        key = avatar_key(task.customer_id, task.job_id, task.attempt, image_format, place)
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


def _record_spans(outcome: Outcome, since: float) -> None:
    """Record a span for each stage of an image just stored. Fetching came first, and the others end now, one
    after the other: only between the two there was waiting, for a model and for a place in the batch."""
    seconds, ended = outcome.timings, time.time()
    traces.record(Stage.FETCH.value, None, since, since + seconds.get(Stage.FETCH, 0.0))
    for stage in (Stage.UPLOAD, Stage.DECODE, Stage.STEPS, Stage.ENCODE):
        if stage in seconds:
            traces.record(stage.value, None, ended - seconds[stage], ended)
            ended -= seconds[stage]


class Generation:
    """The state of a task, shared between the worker and the generator that reports it."""

    def __init__(self, task: GenerationTask) -> None:
        self.task = task
        self.abandoned = Event()
        self.unfinished = len(task.missing)
        """How many images are neither stored nor have failed."""
        self.stored: list[AvatarImage] = []
        """Images that are still to be told."""
        self.outcome: Outcome | None = None
        """Of the image that was stored last."""
        self.fetch_seconds = 0.0
        self.photo: tuple[Image.Image, Crop] | None = None
        """The photo as it is cropped for all images, guarded by `preparing`."""
        self.preparing = asyncio.Lock()
        self._steps: dict[int, int] = {}
        self._steps_each = 0
        self._previews: dict[int, bytes] = {}

    @property
    def progress(self) -> GenerationProgress:
        variants = self.task.parameters.variants
        before = self._steps_each * (variants - len(self.task.missing))
        return GenerationProgress(
            step=before + sum(self._steps.values()), total_steps=self._steps_each * variants
        )

    @property
    def has_preview(self) -> bool:
        """True while a preview waits to be sent."""
        return bool(self._previews)

    def record_step(self, index: int, step: int, total_steps: int, preview: bytes | None = None) -> None:
        """Note how many of its steps the image of this index has done."""
        self._steps[index], self._steps_each = step, total_steps
        if preview is not None:
            self._previews[index] = preview

    def finish_image(self, index: int) -> None:
        """Note that the image is stored or has failed: a preview of it is of no use any more."""
        self.unfinished -= 1
        self._previews.pop(index, None)

    def add_preview(self, progress: GenerationProgress) -> GenerationProgress:
        """Return the progress with the preview that has waited longest; each is sent once."""
        if not self._previews:
            return progress
        index = next(iter(self._previews))
        return replace(progress, preview=self._previews.pop(index), preview_index=index)


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


def _describe_failure(error: BaseException) -> GenerationFailed:
    """Return an error as the end of its task. Raises what is no error, as a cancellation."""
    match error:
        case ObjectNotFound():
            return _create_failure(ORIGINAL_MISSING, f"The original is gone: {error}")
        case StorageUnavailable() | DeviceFailed() | SigningFailed() | RemoteFailed() | RemoteUnavailable():
            log.warning("generation given back", reason=str(error))
            given_back = _create_failure(error.code, str(error), retryable=True)
            if isinstance(error, RemoteUnavailable):
                return replace(given_back, away_seconds=error.away_seconds)
            return given_back
        case ModelMissing():
            log.warning("generation given back", reason=str(error))
            # Not the job's fault, and not held against it: another replica may have a model.
            return replace(_create_failure(error.code, str(error), retryable=True), away_seconds=0.0)
        case AvatarForgeError():
            return _create_failure(error.code, str(error))
        case Exception():
            # The edge of a job: a fault of ours must end this attempt, not the replica.
            log.error("generation broke", exc_info=error)
            return _create_failure(
                AvatarForgeError.code, f"The worker met a fault ({type(error).__name__}).", retryable=True
            )
    raise error


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

    async def _generate_image(self, generation: Generation, index: int, original: bytes) -> GeneratedImage:
        async with self._models() as model:
            parameters = generation.task.parameters.for_image(index, list(model.manifest.styles))
            request, crop = await self._build_request(generation, parameters, original, model.manifest)
            try:
                result = await _run_engine(model, request, generation, index)
            except InvalidRequest as error:
                raise _name_client_text(error, parameters) from error
        return GeneratedImage(
            image=result.image,
            seed=parameters.seed,
            style=parameters.style,
            crop=crop,
            model=model.manifest.name,
            timings=result.timings,
        )


def _name_client_text(error: InvalidRequest, parameters: GenerationParameters) -> InvalidRequest:
    """Return an engine's refusal of a prompt with what the client wrote, which a style puts words around."""
    if error.name != "prompt" or parameters.style is None:
        return error
    return InvalidRequest(error.name, parameters.prompt, f"{error.expected}, the words of its style included")


async def _run_engine(
    model: LoadedModel, request: EngineRequest, generation: Generation, index: int
) -> EngineResult:
    async with aclosing(model.engine.generate(request)) as updates:
        async for update in updates:
            match update:
                case EngineStep(step=step, total_steps=total_steps, preview=preview):
                    generation.record_step(index, step, total_steps, preview)
                case EngineResult():
                    return update
    raise AssertionError("an engine's generator ends with a result or an error")
