"""What an engine is: photos and prompts in, pictures out, step by step. It knows neither Ray nor storage.

There are two: `batching.BatchingEngine` denoises many pictures at once, `sequential.SequentialEngine` runs
any pipeline of diffusers, one picture after the other.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from PIL import Image

from avatarforge.domain.errors import DeviceFailed, InvalidRequest
from avatarforge.domain.jobs import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One picture to make. What a model has no use for (a negative prompt, say) is passed over."""

    image: Image.Image
    """RGB, square, of the model's size."""
    prompt: str
    seed: int
    """0 to 2^64 - 1. The noise is drawn on the CPU, so that a seed means the same on every device."""
    strength: float
    """Above 0, at most 1: the share of the steps that is run, and so how much the photo may change."""
    steps: int
    guidance: float
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStep:
    """`step` of `total_steps` are done."""

    step: int
    total_steps: int
    preview: bytes | None = field(default=None, compare=False)
    """A small WebP of how the picture looked a moment ago; at most four a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """The picture, in RGB; and the seconds by stage: encode, steps, decode."""

    image: Image.Image
    timings: Mapping[Stage, float]


EngineUpdate = EngineStep | EngineResult


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """How an engine is doing, at one moment."""

    limit: int
    """Images that are denoised at once."""
    active: int
    """Images that are being made."""
    waiting: int
    """Images whose turn has not come."""
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    """Seconds of a step by the number of images, rounded up to 1, 2, 4, 8, …"""
    steps_by_images: Mapping[int, int] = field(default_factory=dict)
    """How many steps were run with so many images, since the start."""
    pictures: int = 0
    """Pictures that were finished since the start."""
    cached_embeddings: int = 0
    memory: int | None = None
    """Bytes taken on a GPU; `None` on a CPU, where they are the process's."""
    busy_seconds: float = 0.0
    """Time that went into pictures since the start, as opposed to waiting for requests."""


class Engine(Protocol):
    """Makes pictures with one model. It has a thread of its own, the only one that directs the device."""

    name: str
    device: str

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        """The steps as they are done, from 0 on, and as the last item the result.

        Closing the generator (or cancelling who awaits it) takes a waiting request out of the line and
        stops a running one at the end of its step. Raises `InvalidRequest` for numbers that no picture
        can be made with, `ImageNotFinite`, `ImageWithheld`, `GenerationBroke`, and `DeviceFailed`.
        """

    async def warm_up(self, size: int) -> None:
        """Measure, for pictures of `size` x `size` pixels, whatever the engine has to know of the device."""

    def planned_steps(self, steps: int, strength: float) -> int:
        """The steps that are run for a request with these numbers."""

    def report(self) -> EngineReport:
        """Figures of this moment; from any thread."""

    @property
    def broken(self) -> DeviceFailed | None:
        """Why the device cannot be used by this process any more, if so."""

    def close(self) -> None:
        """Finish the running pictures; waiting ones are never started. Waits for the thread's end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class News:
    """What engine threads tell the one who iterates, and whether that one still listens.

    Made in the event loop of the one who iterates.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Holds one item a step at most.
        self._items: asyncio.Queue[EngineUpdate | BaseException] = asyncio.Queue()
        self._unwanted = Event()

    @property
    def unwanted(self) -> bool:
        """Whether the picture is not to be made any more."""
        return self._unwanted.is_set()

    def stop(self) -> None:
        """Nobody listens any more."""
        self._unwanted.set()

    def tell(self, item: EngineUpdate | BaseException) -> None:
        """Hand the item over; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told.
            self.stop()

    async def updates(self) -> AsyncGenerator[EngineUpdate, None]:
        """The items up to the result. An error that was told is raised."""
        while True:
            match await self._items.get():
                case EngineStep() as step:
                    yield step
                case EngineResult() as result:
                    yield result
                    return
                case BaseException() as error:
                    raise error


def check_numbers(request: EngineRequest) -> None:
    """Raise `InvalidRequest` for a strength or a number of steps that no model knows."""
    if request.steps < 1:
        raise InvalidRequest("The number of steps", request.steps, "at least 1")
    if not 0 < request.strength <= 1:
        raise InvalidRequest("The strength", request.strength, "above 0 and at most 1")


def check_length(request: EngineRequest, steps: int) -> None:
    """Raise `InvalidRequest` unless at least one step is to be run."""
    if steps < 1:
        raise InvalidRequest(
            "The strength",
            request.strength,
            f"at least 1/{request.steps} with {request.steps} steps, since steps x strength are run",
        )
