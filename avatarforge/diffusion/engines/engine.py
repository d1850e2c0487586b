"""The interface of an engine: photos and prompts in, images out, step by step, without Ray or storage.

There are two: `batching.BatchingEngine` denoises many images at once, `sequential.SequentialEngine` runs
any pipeline of diffusers, one image after the other.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import Any, Self

from PIL import Image

from avatarforge.diffusion.engines.watchdog import Watchdog
from avatarforge.domain.errors import DeviceFailed, DeviceLost, InvalidRequest
from avatarforge.domain.jobs import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One image to generate. A model ignores what it cannot use, such as a negative prompt."""

    image: Image.Image
    """The photo: RGB, of the avatar's size, whose sides are multiples of 8."""
    prompt: str
    seed: int
    """0 to 2^64 - 1. The noise is drawn on the CPU, so that a seed gives the same noise on every device."""
    strength: float
    """Above 0, at most 1: the share of the steps that is run, and so how much the photo may change."""
    steps: int
    guidance: float
    image_guidance: float = 1.5
    """At least 1: how much the photo counts in models that edit, if `guidance` is above 1."""
    negative_prompt: str = ""
    sampler: str | None = None
    """One of the engine's `schedulers`; `None` for the pipeline's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStep:
    """Progress: `step` of `total_steps` are done."""

    step: int
    total_steps: int
    preview: bytes | None = field(default=None, compare=False)
    """A small WebP of the image as it was a moment ago; at most four a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """The finished image in RGB, and the seconds of the stages encode, steps and decode."""

    image: Image.Image
    timings: Mapping[Stage, float]


EngineUpdate = EngineStep | EngineResult


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """An engine's load and statistics at one moment."""

    limit: int
    """Maximum number of images in one batch."""
    active: int
    """Images in progress."""
    waiting: int
    """Requests in the queue."""
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    """Seconds per step at the model's own size by batch size, rounded up to 1, 2, 4, 8, …"""
    steps_by_images: Mapping[int, int] = field(default_factory=dict)
    """Number of steps by batch size, since the start."""
    images_generated: int = 0
    """Images finished since the start."""
    cached_embeddings: int = 0
    tuning: Mapping[str, str] = field(default_factory=dict)
    """How the device is used, as warming up found it fastest: memory formats, and passes of a step's rows."""
    compile_failure: str | None = None
    """Why the model runs as it is, if torch could not compile it."""
    memory_bytes: int | None = None
    """Allocated on the GPU; `None` on a CPU, where they are the process's."""
    busy_seconds: float = 0.0
    """Seconds spent on images since the start, without the waiting for requests."""
    busy_step_seconds: float = 0.0
    """Of these, the seconds spent in steps."""


class Engine(ABC):
    """Generates images with one model. It has a thread of its own, the only one that uses the device."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device
        self.device_error: DeviceLost | None = None
        """Why this process cannot use the device any more, if so."""
        self.watchdog = Watchdog()
        self._channels: set[UpdateChannel] = set()

    @abstractmethod
    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        """Yield each step when it is done, from 0 on, and the result as the last item.

        Closing the generator, or cancelling the task that iterates it, removes a waiting request from the
        queue and stops a running one at the end of its step. Raises `InvalidRequest` for impossible
        parameters, `ImageNotFinite`, `ImageWithheld`, `PipelineFailed`, and `DeviceFailed`.
        """

    async def generate_image(self, request: EngineRequest) -> Image.Image:
        """Return the result alone. Raises what `generate` raises."""
        async with aclosing(self.generate(request)) as updates:
            async for update in updates:
                if isinstance(update, EngineResult):
                    return update.image
        raise AssertionError("a generation ends with a result or an error")

    @abstractmethod
    async def warm_up(self, size: int, guidance: float) -> None:
        """Measure what the engine needs to know of the device, with images of `size` x `size` pixels."""

    @abstractmethod
    def count_steps(self, steps: int, strength: float) -> int:
        """Return how many steps are run for a request with these parameters."""

    @abstractmethod
    def report(self) -> EngineReport:
        """Return the load and statistics of this moment; from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Finish the running images, fail the waiting requests, and join the thread."""

    def fail_device(self, error: DeviceLost) -> None:
        """Fail every request, those to come too; from any thread, whatever the engine's own does."""
        self.device_error = error
        for channel in tuple(self._channels):
            channel.send(error)

    @contextmanager
    def _open_channel(self) -> "Iterator[UpdateChannel]":
        """Open the channel of one request, for as long as its receiver is there.

        Raises `DeviceLost` if the device was lost before; if it is lost later, the error is sent.
        """
        channel = UpdateChannel()
        self._channels.add(channel)
        try:
            if self.device_error is not None:
                raise self.device_error
            with self.watchdog.expect_beats():
                yield channel
        finally:
            channel.close()
            self._channels.discard(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_closed_error(self) -> DeviceFailed:
        return DeviceFailed(self.device, "the engine was closed before this image was started.")


class UpdateChannel:
    """Passes updates from engine threads to the task that iterates a request.

    Create it in that task's event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Holds one item a step at most.
        self._items: asyncio.Queue[EngineUpdate | BaseException] = asyncio.Queue()
        self._closed = Event()

    @property
    def is_closed(self) -> bool:
        """True once the receiver is gone: the image need not be finished."""
        return self._closed.is_set()

    def close(self) -> None:
        """Stop receiving."""
        self._closed.set()

    def send(self, item: EngineUpdate | BaseException) -> None:
        """Pass the item to the receiver; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The event loop is closed, and the receiver with it.
            self.close()

    async def receive(self) -> AsyncGenerator[EngineUpdate, None]:
        """Yield the updates up to the result. Raises an error that was sent."""
        while True:
            match await self._items.get():
                case EngineStep() as step:
                    yield step
                case EngineResult() as result:
                    yield result
                    return
                case BaseException() as error:
                    raise error


def check_parameters(request: EngineRequest, samplers: Collection[str | None]) -> None:
    """Raise `InvalidRequest` for a number of steps, a strength or an image guidance out of bounds, and for a
    sampler that is not one of these."""
    if request.steps < 1:
        raise InvalidRequest("The number of steps", request.steps, "at least 1")
    if not 0 < request.strength <= 1:
        raise InvalidRequest("The strength", request.strength, "above 0 and at most 1")
    if not request.image_guidance >= 1:
        raise InvalidRequest("The image guidance", request.image_guidance, "at least 1")
    if request.sampler not in samplers:
        raise InvalidRequest("The sampler", request.sampler, f"one of {', '.join(filter(None, samplers))}")


def check_step_count(request: EngineRequest, steps: int) -> None:
    """Raise `InvalidRequest` unless at least one step would be run."""
    if steps < 1:
        raise InvalidRequest(
            "The strength",
            request.strength,
            f"at least 1/{request.steps} with {request.steps} steps, since steps x strength are run",
        )


def to_image(pixels: Any) -> Image.Image | None:
    """Convert floats (H, W, 3) in 0 to 1; `None` if one is not finite."""
    import numpy as np

    if not np.isfinite(pixels).all():
        return None
    return Image.fromarray((pixels * 255).round().astype("uint8"))
