"""The engine: photos and prompts in, pictures out, step by step. It knows neither Ray nor storage."""

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from PIL import Image

from avatarforge.domain.errors import (
    AvatarForgeError,
    DeviceFailed,
    GenerationBroke,
    GenerationCancelled,
    ImageNotFinite,
    ImageWithheld,
    InvalidRequest,
    ModelUnusable,
)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """The picture, in RGB; and the seconds by stage: encode, steps, decode."""

    image: Image.Image
    timings: Mapping[Stage, float]


EngineUpdate = EngineStep | EngineResult

_Post = Callable[[EngineUpdate | BaseException], object]
"""Hands an item to whoever iterates, in another thread."""


class Engine:
    """Runs any of diffusers' image-to-image pipelines, one picture after the other, in its own thread.

    The thread is the only one that touches the device, so whatever else a picture needs is best done
    elsewhere meanwhile. Requests are served in the order in which they come. The pipeline belongs to
    the engine from now on. Raises `ModelUnusable` for a pipeline that takes no image and prompt.
    """

    def __init__(self, pipeline: Any, name: str, niceness: int = 0) -> None:
        self.name = name
        self.device = str(pipeline.device)
        self._pipeline = pipeline
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        if missing := {"image", "prompt"} - self._parameters.keys():
            kind = type(pipeline).__name__
            raise ModelUnusable(name, f"{kind} does not take {' and '.join(sorted(missing))}")
        # Linux keeps niceness by thread, and the threads that torch starts for this one inherit it.
        step_back = partial(os.nice, niceness) if niceness else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine", initializer=step_back)
        self._broken: DeviceFailed | None = None

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        """The steps as they are done, from 0 on, and as the last item the result.

        Closing the generator (or cancelling who awaits it) takes a waiting request out of the line and
        stops a running one at the end of its step. Raises `InvalidRequest` for numbers that no picture
        can be made with, `ImageNotFinite`, `ImageWithheld`, `GenerationBroke`, and `DeviceFailed`.
        """
        total_steps = self._planned_steps(request)
        loop = asyncio.get_running_loop()
        # Holds one item a step at most.
        news: asyncio.Queue[EngineUpdate | BaseException] = asyncio.Queue()
        stop = Event()
        run = _Run(request, total_steps, stop, lambda item: loop.call_soon_threadsafe(news.put_nowait, item))
        waiting = self._thread.submit(self._run, run)
        waiting.add_done_callback(partial(self._tell_if_never_started, run))
        try:
            while True:
                match await news.get():
                    case EngineStep() as step:
                        yield step
                    case EngineResult() as result:
                        yield result
                        return
                    case BaseException() as error:
                        raise error
        finally:
            stop.set()
            waiting.cancel()

    @property
    def broken(self) -> DeviceFailed | None:
        """Why the device cannot be used by this process any more, if so."""
        return self._broken

    def close(self) -> None:
        """Stop after the running picture; waiting ones are never started. Waits for the thread's end."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _planned_steps(self, request: EngineRequest) -> int:
        """The steps that pipelines run: int(steps x strength), as in diffusers' `get_timesteps`."""
        if request.steps < 1:
            raise InvalidRequest("The number of steps", request.steps, "at least 1")
        if not 0 < request.strength <= 1:
            raise InvalidRequest("The strength", request.strength, "above 0 and at most 1")
        if "strength" not in self._parameters:
            return request.steps
        if (planned := int(request.steps * request.strength)) < 1:
            raise InvalidRequest(
                "The strength",
                request.strength,
                f"at least 1/{request.steps} with {request.steps} steps, since steps x strength are run",
            )
        return planned

    def _run(self, run: "_Run") -> None:
        """In the engine's thread: make the picture, tell how it ended."""
        try:
            run.tell(self._picture(run))
        except GenerationCancelled:
            self._pipeline.maybe_free_model_hooks()
        except AvatarForgeError as error:
            run.tell(error)
        except Exception as error:
            run.tell(self._translated(error))

    def _tell_if_never_started(self, run: "_Run", future: "Future[None]") -> None:
        """`close` cancels what waits, and who iterates must hear of it."""
        if future.cancelled():
            run.tell(DeviceFailed(self.device, "the engine was closed before this picture's turn came."))

    def _picture(self, run: "_Run") -> EngineResult:
        run.begin()
        with run.watching(self._denoiser()):
            output = self._pipeline(**self._arguments(run))
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise ImageWithheld(self.name)
        picture = _as_image(output.images[0])
        if picture is None:
            raise ImageNotFinite(self.name)
        return EngineResult(image=picture, timings=run.timings())

    def _arguments(self, run: "_Run") -> dict[str, Any]:
        """Those of the request's values that this pipeline's call takes."""
        import torch

        request = run.request
        values: dict[str, Any] = {
            "prompt": request.prompt,
            "image": request.image,
            "strength": request.strength,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "width": request.image.width,
            "height": request.image.height,
            # Not "pil": its cast to bytes hides values that are no numbers.
            "output_type": "np",
            "callback_on_step_end": run.step_ended,
        }
        if request.negative_prompt:
            values["negative_prompt"] = request.negative_prompt
        return {name: value for name, value in values.items() if name in self._parameters}

    def _denoiser(self) -> Any:
        """The module that runs once or more a step, in the families that have one under these names."""
        return getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)

    def _translated(self, error: Exception) -> AvatarForgeError:
        import torch

        reason = f"{type(error).__name__}: {error}"
        translated: AvatarForgeError = GenerationBroke(self.name, reason)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            translated = DeviceFailed(self.device, "it has too little memory for this picture.")
        elif isinstance(error, getattr(torch, "AcceleratorError", ())):
            # After such an error every later call in this process fails too.
            translated = self._broken = DeviceFailed(self.device, reason)
        translated.__cause__ = error
        return translated


class _Run:
    """One request on its way through the engine's thread: watches the time and the wish to stop."""

    def __init__(self, request: EngineRequest, total_steps: int, stop: Event, post: _Post) -> None:
        self.request = request
        self._total_steps = total_steps
        self._stop = stop
        self._post = post
        self._begun = self._encoded = self._denoised = 0.0

    def begin(self) -> None:
        self._go_on()
        self._begun = self._denoised = perf_counter()
        self.tell(EngineStep(step=0, total_steps=self._total_steps))

    @contextmanager
    def watching(self, denoiser: Any) -> Iterator[None]:
        """A context in which the denoiser's first call is noted: there the encoding ends."""
        if denoiser is None:
            yield
            return
        hook = denoiser.register_forward_pre_hook(self._first_step_begins)
        try:
            yield
        finally:
            hook.remove()

    def _first_step_begins(self, module: Any, arguments: Any) -> None:
        if not self._encoded:
            _finish_launched_work(module.device)
            self._encoded = perf_counter()

    def step_ended(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`. Raises `GenerationCancelled` out of the pipeline."""
        self._go_on()
        # Schedulers of higher order take more steps than were asked for.
        total_steps = getattr(pipeline, "num_timesteps", None) or self._total_steps
        if index + 1 >= total_steps:
            _finish_launched_work(pipeline.device)
        self._denoised = perf_counter()
        self.tell(EngineStep(step=index + 1, total_steps=max(total_steps, index + 1)))
        return {}

    def timings(self) -> dict[Stage, float]:
        encoded = self._encoded or self._begun
        return {
            Stage.ENCODE: encoded - self._begun,
            Stage.STEPS: max(self._denoised - encoded, 0.0),
            Stage.DECODE: perf_counter() - self._denoised,
        }

    def tell(self, news: EngineUpdate | BaseException) -> None:
        try:
            self._post(news)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told.
            self._stop.set()

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise GenerationCancelled


def _as_image(pixels: Any) -> Image.Image | None:
    """From floats (H, W, 3) in 0 to 1; `None` where one is no number."""
    import numpy as np

    if not np.isfinite(pixels).all():
        return None
    return Image.fromarray((pixels * 255).round().astype("uint8"))


def _finish_launched_work(device: Any) -> None:
    """Calls on a GPU return before it has done the work; what measures time waits for it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
