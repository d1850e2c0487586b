"""What workers of every kind do with a task: fetch its original, cut it, store what was made, and tell."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from threading import Event
from time import perf_counter
from typing import ClassVar, TypeVar

import structlog
from PIL import Image

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.engine import EngineRequest
from avatarforge.diffusion.provenance import Marking
from avatarforge.diffusion.squares import cut
from avatarforge.domain.errors import (
    AvatarForgeError,
    DamagedPhoto,
    DeviceFailed,
    ModelMissing,
    ObjectNotFound,
    RemoteFailed,
    RemoteUnavailable,
    SigningFailed,
    StorageUnavailable,
)
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import Crop, JobError, Outcome, Stage, StoredImage
from avatarforge.storage import ObjectStorage
from avatarforge.storage.keys import avatar_key
from avatarforge.storage.pictures import load_upright
from avatarforge.telemetry import traces
from avatarforge.telemetry.logs import about

log = structlog.get_logger(__name__)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A picture, and how it came about."""

    image: Image.Image
    crop: Crop
    model: str
    timings: Mapping[Stage, float] = field(default_factory=dict)
    """Seconds of the stages between fetching and storing."""


class TaskWorker(ABC):
    """Fetches, cuts, has a picture made, encodes and uploads; any number of tasks at a time.

    What blocks runs in threads, so that the next task's photo is ready when its maker is.
    """

    BACKEND: ClassVar[str]
    """What jobs record as their backend."""
    PROGRESS = 0.25
    """Seconds between two updates: at most four a second travel."""
    HEARTBEAT = 5.0
    """Seconds of silence after which the last update is sent again."""
    FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
    """Seconds before storage that does not answer is asked again; they double each time."""

    STORAGE_THREADS = 32
    """Calls of storage at a time."""

    def __init__(self, storage: ObjectStorage, storage_patience: float, marking: Marking | None) -> None:
        self._storage = storage
        self._patience = storage_patience
        self._marking = marking or Marking()
        # Threads of its own: those that wait for slow storage must not keep pictures from being cut.
        self._threads = ThreadPoolExecutor(self.STORAGE_THREADS, thread_name_prefix="storage")

    @abstractmethod
    async def _made(self, generation: "Generation", original: bytes) -> Made:
        """The picture for the task. Tells steps through `generation`; stops when it is cancelled."""

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Progress while it works or waits; the last item is how it ended, whatever went wrong.

        Closing the generator stops the picture at its next step; nothing of it stays in storage.
        """
        generation = Generation(task)
        work = asyncio.create_task(self._result(generation))
        try:
            shown, shown_at = generation.progress, perf_counter()
            yield shown
            while not work.done():
                await asyncio.wait({work}, timeout=self.PROGRESS)
                silence = perf_counter() - shown_at
                if generation.progress != shown or silence >= self.HEARTBEAT:
                    shown, shown_at = generation.progress, perf_counter()
                    yield replace(shown, preview=generation.taken_preview())
            yield work.result()
        finally:
            generation.abandoned.set()
            work.cancel()
            await asyncio.wait({work})

    async def _result(self, generation: "Generation") -> GenerationFinished | GenerationFailed:
        task = generation.task
        identity: dict[str, str | int] = {
            "job_id": task.job_id,
            "customer_id": task.customer_id,
            "attempt": task.attempt,
        }
        with about(**identity), traces.span("generate", task.traceparent, "server", identity):
            return await self._ended(generation)

    async def _ended(self, generation: "Generation") -> GenerationFinished | GenerationFailed:
        try:
            return GenerationFinished(outcome=await self._outcome(generation))
        except ObjectNotFound as error:
            return _failed("original_missing", f"The original is gone: {error}")
        except (StorageUnavailable, DeviceFailed, SigningFailed, RemoteFailed, RemoteUnavailable) as error:
            log.warning("generation given back", reason=str(error))
            given_back = _failed(error.code, str(error), retryable=True)
            if isinstance(error, RemoteUnavailable):
                return replace(given_back, away_seconds=error.away_seconds)
            return given_back
        except ModelMissing as error:
            log.warning("generation given back", reason=str(error))
            # Not the job's fault, and not held against it: another replica may have a model.
            return replace(_failed(error.code, str(error), retryable=True), away_seconds=0.0)
        except AvatarForgeError as error:
            return _failed(error.code, str(error))
        except Exception as error:
            # The edge of a job: a fault of ours must end this attempt, not the replica.
            log.error("generation broke", exc_info=error)
            return _failed(
                AvatarForgeError.code, f"The worker met a fault ({type(error).__name__}).", retryable=True
            )

    async def _outcome(self, generation: "Generation") -> Outcome:
        task, seconds = generation.task, generation.seconds
        since, begun = time.time(), perf_counter()
        original = await self._patiently(lambda: self._storage.get(task.original.key))
        seconds[Stage.FETCH] = perf_counter() - begun
        made = await self._made(generation, original)
        seconds.update(made.timings)
        begun = perf_counter()
        avatar = await self._upload(generation, made.image)
        seconds[Stage.UPLOAD] = perf_counter() - begun
        _trace(generation, since)
        return Outcome(
            avatar=avatar,
            model=made.model,
            backend=self.BACKEND,
            crop=made.crop,
            timings={stage.value: round(taken, 6) for stage, taken in seconds.items()},
        )

    async def _request(
        self, generation: "Generation", original: bytes, manifest: Manifest
    ) -> tuple[EngineRequest, Crop]:
        """The task's wishes, with the manifest's defaults for what they leave open; and the square's cut.

        Raises `InvalidRequest` and `DamagedPhoto`.
        """
        wanted, defaults = generation.task.parameters, manifest.defaults
        # First: words that no model understands need no decoding.
        prompt = manifest.prompt_for(wanted.style, wanted.prompt)
        begun = perf_counter()
        picture, crop = await asyncio.to_thread(_prepared, original, manifest.size, cut_face=wanted.cut_face)
        generation.seconds[Stage.FETCH] += perf_counter() - begun
        request = EngineRequest(
            image=picture,
            prompt=prompt,
            negative_prompt=wanted.negative_prompt or defaults.negative_prompt,
            seed=wanted.seed,
            strength=defaults.strength if wanted.strength is None else wanted.strength,
            steps=defaults.steps if wanted.steps is None else wanted.steps,
            guidance=defaults.guidance if wanted.guidance is None else wanted.guidance,
        )
        return request, crop

    async def _upload(self, generation: "Generation", image: Image.Image) -> StoredImage:
        task = generation.task
        image_format = task.parameters.format
        key = avatar_key(task.customer_id, task.job_id, task.attempt, image_format)
        content = await asyncio.to_thread(self._marking.file, image, image_format)

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
                return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
            except StorageUnavailable as error:
                # Uneven pauses, so that many replicas do not come back in the same moment.
                uneven = pause * random.uniform(0.5, 1)
                if perf_counter() + uneven > given_up_at:
                    raise
                log.warning("storage does not answer", reason=error.reason, again_in=round(uneven, 2))
                await asyncio.sleep(uneven)
                pause = min(2 * pause, self.LONGEST_PAUSE)


def _trace(generation: "Generation", since: float) -> None:
    """A span for each stage of what has just been made. Fetching came first, and the others end now, one
    after the other: only between the two there was waiting, for a model and for a place in the batch."""
    seconds, ended = generation.seconds, time.time()
    traces.record(Stage.FETCH.value, None, since, since + seconds.get(Stage.FETCH, 0.0))
    for stage in (Stage.UPLOAD, Stage.DECODE, Stage.STEPS, Stage.ENCODE):
        if stage in seconds:
            traces.record(stage.value, None, ended - seconds[stage], ended)
            ended -= seconds[stage]


class Generation:
    """A task on its way, shared between the one who works and the one who tells."""

    def __init__(self, task: GenerationTask) -> None:
        self.task = task
        self.progress = GenerationProgress()
        self.preview: bytes | None = None
        self.seconds: dict[Stage, float] = {}
        self.abandoned = Event()

    def taken_preview(self) -> bytes | None:
        """The newest preview; each travels once."""
        preview, self.preview = self.preview, None
        return preview


def _prepared(original: bytes, size: int, *, cut_face: bool) -> tuple[Image.Image, Crop]:
    try:
        photo = load_upright(original)
    # Pillow's decoders raise errors of many kinds; all mean that the original was damaged in storage.
    except Exception as error:
        raise DamagedPhoto("The original", f"{type(error).__name__}: {error}") from error
    return cut(photo, size, cut_face=cut_face)


def _failed(code: str, message: str, *, retryable: bool = False) -> GenerationFailed:
    return GenerationFailed(error=JobError(code=code, message=message), retryable=retryable)
