"""The engine for pipelines whose steps are not known from inside: one image after the other."""

import inspect
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from avatarforge.diffusion.engines.engine import (
    Engine,
    EngineReport,
    EngineRequest,
    EngineResult,
    EngineStep,
    EngineUpdate,
    UpdateChannel,
    check_parameters,
    check_step_count,
    to_image,
)
from avatarforge.diffusion.engines.torch_errors import is_fatal, is_out_of_memory, translate_error
from avatarforge.diffusion.engines.watchdog import Watchdog
from avatarforge.domain.errors import (
    AvatarForgeError,
    DeviceLost,
    GenerationCancelled,
    ImageNotFinite,
    ImageWithheld,
    ModelUnusable,
)
from avatarforge.domain.jobs import Stage


class SequentialEngine(Engine):
    """Runs any of diffusers' image-to-image pipelines through its own call, in one thread.

    The thread is the only one that uses the device, so whatever else an image needs is best done elsewhere
    meanwhile. Requests are served first in, first out. The engine owns the pipeline from now on. Raises
    `ModelUnusable` for a pipeline that takes no image and prompt.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str,
        *,
        threads: int,
        niceness: int = 0,
        device: str | None = None,
        schedulers: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
    ) -> None:
        """`device` is where the pipeline computes, if its weights lie elsewhere; `schedulers` are those that
        requests may ask for, by the samplers' names."""
        super().__init__(name, device or str(pipeline.device))
        self._pipeline = pipeline
        self._schedulers: dict[str | None, Any] = {None: getattr(pipeline, "scheduler", None)}
        self._schedulers.update(schedulers or {})
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        needed = {"image", "prompt"} | ({"guidance_rescale"} if guidance_rescale else set())
        if missing := needed - self._parameters.keys():
            kind = type(pipeline).__name__
            raise ModelUnusable(name, f"{kind} does not take {' and '.join(sorted(missing))}")
        self._guidance_rescale = guidance_rescale
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="engine", initializer=_set_up_thread, initargs=(threads, niceness)
        )
        self._active: set[_ActiveRequest] = set()
        self._busy_seconds = self._busy_step_seconds = 0.0
        self._step_seconds: float | None = None
        self._steps = self._images_generated = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        check_parameters(request, self._schedulers)
        total_steps = self.count_steps(request.steps, request.strength)
        check_step_count(request, total_steps)
        with self._open_channel() as channel:
            active = _ActiveRequest(request, total_steps, channel, self.watchdog)
            self._active.add(active)
            waiting = self._executor.submit(self._process, active)
            waiting.add_done_callback(partial(self._fail_if_cancelled, active))
            try:
                async with aclosing(channel.receive()) as updates:
                    async for update in updates:
                        yield update
            finally:
                channel.close()
                waiting.cancel()
                self._active.discard(active)

    async def warm_up(self, size: int, guidance: float) -> None:
        """Do nothing: this engine needs no measurements."""

    def count_steps(self, steps: int, strength: float) -> int:
        """Return int(steps x strength), as in diffusers' `get_timesteps`; all if there is no strength."""
        return int(steps * strength) if "strength" in self._parameters else steps

    def report(self) -> EngineReport:
        started = [active.has_started for active in list(self._active)]
        return EngineReport(
            limit=1,
            active=sum(started),
            waiting=len(started) - sum(started),
            step_seconds={} if self._step_seconds is None else {1: self._step_seconds},
            steps_by_images={1: self._steps} if self._steps else {},
            images_generated=self._images_generated,
            busy_seconds=self._busy_seconds,
            busy_step_seconds=self._busy_step_seconds,
        )

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _process(self, active: "_ActiveRequest") -> None:
        """Generate the image, and send the result or the error; in the engine's thread."""
        began = perf_counter()
        try:
            active.channel.send(self._generate_image(active))
        except GenerationCancelled:
            self._pipeline.maybe_free_model_hooks()
        except Exception as error:
            # The edge of one image: it fails alone, whatever the reason.
            active.channel.send(self._translate_error(error))
        self.watchdog.beat()
        self._busy_seconds += perf_counter() - began

    def _fail_if_cancelled(self, active: "_ActiveRequest", future: "Future[None]") -> None:
        """Send an error if the request was cancelled while it waited: `close` does so."""
        if future.cancelled():
            active.channel.send(self._make_closed_error())

    def _generate_image(self, active: "_ActiveRequest") -> EngineResult:
        active.start()
        if len(self._schedulers) > 1:
            self._pipeline.scheduler = self._schedulers[active.request.sampler]
        with active.watch_denoiser(self._get_denoiser()):
            output = self._pipeline(**self._build_arguments(active))
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise ImageWithheld(self.name)
        image = to_image(output.images[0])
        if image is None:
            raise ImageNotFinite(self.name)
        timings = active.get_timings()
        self._record_timings(active.steps_done, timings[Stage.STEPS])
        return EngineResult(image=image, timings=timings)

    def _record_timings(self, steps: int, seconds: float) -> None:
        self._images_generated += 1
        self._steps += steps
        self._busy_step_seconds += seconds
        if steps:
            known = self._step_seconds
            self._step_seconds = seconds / steps if known is None else 0.8 * known + 0.2 * seconds / steps

    def _build_arguments(self, active: "_ActiveRequest") -> dict[str, Any]:
        """Return those of the request's values that this pipeline's call takes."""
        import torch

        request = active.request
        values: dict[str, Any] = {
            "prompt": request.prompt,
            "image": request.image,
            "strength": request.strength,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "image_guidance_scale": request.image_guidance,
            "guidance_rescale": self._guidance_rescale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "width": request.image.width,
            "height": request.image.height,
            # Not "pil": its cast to bytes hides values that are not finite.
            "output_type": "np",
            "callback_on_step_end": active.on_step_end,
            # Some pipelines still have the older form instead.
            "callback": lambda index, timestep, latents: active.on_step_end(
                self._pipeline, index, timestep, {}
            ),
        }
        if request.negative_prompt:
            values["negative_prompt"] = request.negative_prompt
        return {name: value for name, value in values.items() if name in self._parameters}

    def _get_denoiser(self) -> Any:
        """Return the module that runs once or more a step, if the pipeline has one under these names."""
        return getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)

    def _translate_error(self, error: Exception) -> AvatarForgeError:
        translated = translate_error(error, self.name, self.device)
        if is_out_of_memory(error) and self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
        elif is_fatal(error):
            assert isinstance(translated, DeviceLost), "a fatal error is the device's"
            self.fail_device(translated)
        return translated


class _ActiveRequest:
    """The state of one request: takes the times, and stops the pipeline when the request is cancelled."""

    def __init__(
        self, request: EngineRequest, total_steps: int, channel: UpdateChannel, watchdog: Watchdog
    ) -> None:
        self.request = request
        self.channel = channel
        self._watchdog = watchdog
        self._total_steps = total_steps
        self._started_at = self._encoded_at = self._denoised_at = 0.0
        self.steps_done = 0

    @property
    def has_started(self) -> bool:
        return self._started_at > 0

    def start(self) -> None:
        self._raise_if_cancelled()
        self._started_at = self._denoised_at = perf_counter()
        self.channel.send(EngineStep(step=0, total_steps=self._total_steps))

    @contextmanager
    def watch_denoiser(self, denoiser: Any) -> Iterator[None]:
        """Record the time of the denoiser's first call, where the encoding ends."""
        if denoiser is None:
            yield
            return
        hook = denoiser.register_forward_pre_hook(self._record_encoding_end)
        try:
            yield
        finally:
            hook.remove()

    def _record_encoding_end(self, module: Any, arguments: Any) -> None:
        self._watchdog.beat()
        if not self._encoded_at:
            _synchronize(module.device)
            self._encoded_at = perf_counter()

    def on_step_end(
        self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Implement diffusers' `callback_on_step_end`. Raises `GenerationCancelled` through the pipeline."""
        self._watchdog.beat()
        self._raise_if_cancelled()
        # Schedulers of higher order take more steps than were asked for.
        total_steps = getattr(pipeline, "num_timesteps", None) or self._total_steps
        if index + 1 >= total_steps:
            _synchronize(pipeline.device)
        self._denoised_at = perf_counter()
        self.steps_done = index + 1
        self.channel.send(EngineStep(step=index + 1, total_steps=max(total_steps, index + 1)))
        return {}

    def get_timings(self) -> dict[Stage, float]:
        encoded = self._encoded_at or self._started_at
        return {
            Stage.ENCODE: encoded - self._started_at,
            Stage.STEPS: max(self._denoised_at - encoded, 0.0),
            Stage.DECODE: perf_counter() - self._denoised_at,
        }

    def _raise_if_cancelled(self) -> None:
        if self.channel.is_closed:
            raise GenerationCancelled


def _set_up_thread(threads: int, niceness: int) -> None:
    """Set niceness and torch's threads, which belong to a thread; those it starts inherit the first."""
    import torch

    torch.set_num_threads(threads)
    if niceness:
        os.nice(niceness)


def _synchronize(device: Any) -> None:
    """Wait until the GPU has done its work, as its calls return before: for measuring time."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
