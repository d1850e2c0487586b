"""The engine for pipelines whose steps are not known from inside: one picture after the other."""

import inspect
import os
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from PIL import Image

from avatarforge.diffusion.engine import (
    EngineReport,
    EngineRequest,
    EngineResult,
    EngineStep,
    EngineUpdate,
    News,
    check_length,
    check_numbers,
)
from avatarforge.diffusion.faults import fatal, out_of_memory, translated
from avatarforge.domain.errors import (
    AvatarForgeError,
    DeviceFailed,
    GenerationCancelled,
    ImageNotFinite,
    ImageWithheld,
    ModelUnusable,
)
from avatarforge.domain.jobs import Stage


class SequentialEngine:
    """Runs any of diffusers' image-to-image pipelines through its own call, in one thread.

    The thread is the only one that touches the device, so whatever else a picture needs is best done
    elsewhere meanwhile. Requests are served in the order in which they come. The pipeline belongs to
    the engine from now on. Raises `ModelUnusable` for a pipeline that takes no image and prompt.
    """

    def __init__(
        self, pipeline: Any, name: str, *, threads: int, niceness: int = 0, device: str | None = None
    ) -> None:
        """`device` is where the pipeline computes, if its weights lie elsewhere."""
        self.name = name
        self.device = device or str(pipeline.device)
        self._pipeline = pipeline
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        if missing := {"image", "prompt"} - self._parameters.keys():
            kind = type(pipeline).__name__
            raise ModelUnusable(name, f"{kind} does not take {' and '.join(sorted(missing))}")
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="engine", initializer=_begin_thread, initargs=(threads, niceness)
        )
        self._broken: DeviceFailed | None = None
        self._runs: set[_Run] = set()
        self._busy_seconds = 0.0
        self._step_seconds: float | None = None
        self._steps = self._pictures = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        """As `Engine.generate`."""
        check_numbers(request)
        total_steps = self.planned_steps(request.steps, request.strength)
        check_length(request, total_steps)
        run = _Run(request, total_steps, News())
        self._runs.add(run)
        waiting = self._thread.submit(self._run, run)
        waiting.add_done_callback(partial(self._tell_if_never_started, run))
        try:
            async with aclosing(run.news.updates()) as updates:
                async for update in updates:
                    yield update
        finally:
            run.news.stop()
            waiting.cancel()
            self._runs.discard(run)

    async def warm_up(self, size: int) -> None:
        """There is nothing to measure: a picture is made as the pipeline makes it."""

    def planned_steps(self, steps: int, strength: float) -> int:
        """int(steps x strength), as in diffusers' `get_timesteps`; all where a pipeline has no strength."""
        return int(steps * strength) if "strength" in self._parameters else steps

    def report(self) -> EngineReport:
        """Figures of this moment; from any thread."""
        begun = [run.begun for run in list(self._runs)]
        return EngineReport(
            limit=1,
            active=sum(begun),
            waiting=len(begun) - sum(begun),
            step_seconds={} if self._step_seconds is None else {1: self._step_seconds},
            steps_by_images={1: self._steps} if self._steps else {},
            pictures=self._pictures,
            busy_seconds=self._busy_seconds,
        )

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

    def _run(self, run: "_Run") -> None:
        """In the engine's thread: make the picture, tell how it ended."""
        begun = perf_counter()
        try:
            run.news.tell(self._picture(run))
        except GenerationCancelled:
            self._pipeline.maybe_free_model_hooks()
        except Exception as error:
            # The edge of one picture: it fails alone, whatever the reason.
            run.news.tell(self._translated(error))
        self._busy_seconds += perf_counter() - begun

    def _tell_if_never_started(self, run: "_Run", future: "Future[None]") -> None:
        """`close` cancels what waits, and who iterates must hear of it."""
        if future.cancelled():
            run.news.tell(DeviceFailed(self.device, "the engine was closed before this picture's turn came."))

    def _picture(self, run: "_Run") -> EngineResult:
        run.begin()
        with run.watching(self._denoiser()):
            output = self._pipeline(**self._arguments(run))
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise ImageWithheld(self.name)
        picture = _as_image(output.images[0])
        if picture is None:
            raise ImageNotFinite(self.name)
        timings = run.timings()
        self._measure(run.steps, timings[Stage.STEPS])
        return EngineResult(image=picture, timings=timings)

    def _measure(self, steps: int, seconds: float) -> None:
        self._pictures += 1
        self._steps += steps
        if steps:
            known = self._step_seconds
            self._step_seconds = seconds / steps if known is None else 0.8 * known + 0.2 * seconds / steps

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
        told = translated(error, self.name, self.device)
        if out_of_memory(error) and self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
        elif fatal(error):
            assert isinstance(told, DeviceFailed), "a fatal error is the device's"
            self._broken = told
        return told


class _Run:
    """One request on its way through the engine's thread: watches the time and the wish to stop."""

    def __init__(self, request: EngineRequest, total_steps: int, news: News) -> None:
        self.request = request
        self.news = news
        self._total_steps = total_steps
        self._begun = self._encoded = self._denoised = 0.0
        self.steps = 0
        """Steps done."""

    @property
    def begun(self) -> bool:
        return self._begun > 0

    def begin(self) -> None:
        self._go_on()
        self._begun = self._denoised = perf_counter()
        self.news.tell(EngineStep(step=0, total_steps=self._total_steps))

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
        self.steps = index + 1
        self.news.tell(EngineStep(step=index + 1, total_steps=max(total_steps, index + 1)))
        return {}

    def timings(self) -> dict[Stage, float]:
        encoded = self._encoded or self._begun
        return {
            Stage.ENCODE: encoded - self._begun,
            Stage.STEPS: max(self._denoised - encoded, 0.0),
            Stage.DECODE: perf_counter() - self._denoised,
        }

    def _go_on(self) -> None:
        if self.news.unwanted:
            raise GenerationCancelled


def _begin_thread(threads: int, niceness: int) -> None:
    """Niceness and torch's number of threads belong to a thread; those it starts inherit the first."""
    import torch

    torch.set_num_threads(threads)
    if niceness:
        os.nice(niceness)


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
