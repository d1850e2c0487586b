"""The engine that denoises many images at once, step by step.

Every step runs one UNet pass over all active images, whatever their prompt, seed, strength, steps, guidance
and sampler. A new request joins at the next step; a finished or cancelled one leaves at once.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from itertools import groupby
from threading import Condition, Thread
from time import perf_counter, process_time
from typing import Any, Final, TypeVar

import torch
from PIL import Image
from torch import Tensor

from avatarforge.diffusion.engines.architectures import (
    Architecture,
    Compilation,
    Conditions,
    Embedding,
    EmbeddingCache,
    Part,
    Text,
    find_architecture,
)
from avatarforge.diffusion.engines.batch_limits import BatchLimits, Shape, bucket_of
from avatarforge.diffusion.engines.cpu_pool import CpuPool
from avatarforge.diffusion.engines.denoiser import Denoiser, StepTensors
from avatarforge.diffusion.engines.engine import (
    Engine,
    EngineReport,
    EngineRequest,
    EngineUpdate,
    check_parameters,
    check_step_count,
)
from avatarforge.diffusion.engines.previews import Previewer
from avatarforge.diffusion.engines.prompts import PromptWeights, UnusablePrompt
from avatarforge.diffusion.engines.request import ActiveRequest, PendingTensor
from avatarforge.diffusion.engines.samplers import Sampler, Trajectory
from avatarforge.diffusion.engines.torch_errors import is_fatal, is_out_of_memory, translate_error
from avatarforge.domain.errors import DeviceLost, InvalidRequest, ModelUnusable

_SLOW_STEP_SECONDS: Final = 5.0
"""No larger batch is tried after a step that takes longer: nobody would wait for it."""
_QUICK_STEP_SECONDS: Final = 0.15
"""Steps that take less are measured in `_EXTRA_ROUNDS` more rounds: a longer one evens out by itself, and a
replica shall serve soon."""
_EXTRA_ROUNDS: Final = 3
_CLEAR_GAIN: Final = 0.95
"""Another than the usual way is taken if it needs at most this share of the time: others use the CPU too."""
_HOPELESS: Final = 1.15
"""Lanes with which a step takes so many times as long as it might are not tried for more images."""
_COMPARING_SECONDS: Final = 1.0
"""After so much measuring only the fastest lanes are tried for more images: a replica shall serve soon."""

_MEMORY_FORMATS: Final = (torch.channels_last, torch.contiguous_format)

_Way = TypeVar("_Way")

BatchWork = Callable[[Sequence[ActiveRequest]], None]
"""Processes several requests at once. If it fails it is called again with smaller parts."""


class BatchingEngine(Engine):
    """Generates images with a pipeline that `find_architecture` knows.

    One thread uses the device; on a CPU it has a pool, `threads` in all. Photos are read and images
    written in other threads. The engine owns the pipeline from now on. Raises `ModelUnusable` for a
    pipeline of another architecture.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str,
        *,
        threads: int,
        max_batch: int = 8,
        compilation: Compilation = "none",
        niceness: int = 0,
        schedulers: Mapping[str, Any] | None = None,
        prompt_weights: PromptWeights = "none",
        guidance_rescale: float = 0.0,
    ) -> None:
        """`schedulers` are those that requests may ask for, by the samplers' names."""
        super().__init__(name, str(pipeline.device))
        self.watchdog.is_compiling = compilation != "none"
        self._architecture = _adapt(pipeline, name)(pipeline, prompt_weights, guidance_rescale)
        self._samplers: dict[str | None, Sampler] = {}
        for sampler, scheduler in ((None, pipeline.scheduler), *(schedulers or {}).items()):
            self._samplers[sampler] = Sampler(scheduler, self._architecture.strength_use)
        self._cpu_pool = CpuPool(self._architecture.device, threads, niceness)
        self._denoiser = Denoiser(self._architecture, self._cpu_pool, compilation)
        self._embeddings = EmbeddingCache()
        self._batch_limits = BatchLimits(max_batch)
        # Of the autoencoder's batches: singly on a CPU, where threads gain and batches do not.
        self._autoencoder_limits = BatchLimits(1 if self._architecture.device.type == "cpu" else max_batch)
        self._previewer: Previewer | None = None
        self._busy_seconds = self._busy_step_seconds = 0.0
        self._steps_by_images: Counter[int] = Counter()
        self._images_generated = 0
        self._last_step_event: Any = None
        # What the threads share, guarded by `_changed`.
        self._changed = Condition()
        self._queue: deque[ActiveRequest] = deque()
        self._control_queue: deque[Callable[[], None]] = deque()
        self._active: list[ActiveRequest] = []
        self._is_closing = False
        self._io_pool = ThreadPoolExecutor(2, thread_name_prefix="images")
        self._thread = Thread(target=self._run_loop, args=(niceness,), name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        check_parameters(request, self._samplers)
        check_step_count(request, self.count_steps(request.steps, request.strength))
        with self._open_channel() as channel:
            active = ActiveRequest(request, self.name, channel)
            try:
                await self._prepare(active)
                self._enqueue(active)
                async with aclosing(channel.receive()) as updates:
                    async for update in updates:
                        yield update
            finally:
                self._dequeue(active)

    async def warm_up(self, size: int, guidance: float) -> None:
        """Find the best batch size, and on a CPU the best way to use it; fit the weights of previews."""
        measured: Future[None] = Future()

        def measure() -> None:
            if not measured.set_running_or_notify_cancel():
                return
            try:
                self._measure(size, guidance)
            except Exception as error:
                measured.set_exception(translate_error(error, self.name, self.device))
            else:
                measured.set_result(None)

        with self._changed:
            if self._is_closing:
                raise self._make_closed_error()
            self._control_queue.append(measure)
            self._changed.notify()
        with self.watchdog.expect_beats():
            await asyncio.wrap_future(measured)

    def count_steps(self, steps: int, strength: float) -> int:
        return self._samplers[None].count_steps(steps, strength)

    def report(self) -> EngineReport:
        with self._changed:
            active, waiting = len(self._active), len(self._queue)
        on_gpu = self._architecture.device.type == "cuda"
        return EngineReport(
            limit=self._batch_limits.limit(),
            active=active,
            waiting=waiting,
            step_seconds=self._batch_limits.step_seconds(),
            steps_by_images=dict(sorted(self._steps_by_images.items())),
            images_generated=self._images_generated,
            cached_embeddings=len(self._embeddings),
            tuning=self._describe_tuning(),
            compile_failure=self._denoiser.compile_failure,
            memory_bytes=torch.cuda.memory_allocated(self._architecture.device) if on_gpu else None,
            busy_seconds=self._busy_seconds,
            busy_step_seconds=self._busy_step_seconds,
        )

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._io_pool.shutdown()
        self._cpu_pool.close()

    # --- in the caller's event loop ---------------------------------------------------------------

    async def _prepare(self, request: ActiveRequest) -> None:
        """Read the photo and plan the steps, in the I/O pool."""

        def prepare() -> None:
            request.pixels = self._architecture.to_pixels(request.params.image)
            sampler = self._samplers[request.params.sampler]
            request.plan = sampler.plan(request.params.steps, request.params.strength)

        try:
            await asyncio.get_running_loop().run_in_executor(self._io_pool, prepare)
        except Exception as error:
            if self._is_closing:
                raise self._make_closed_error() from error
            raise translate_error(error, self.name, self.device) from error

    def _enqueue(self, request: ActiveRequest) -> None:
        with self._changed:
            if self.device_error is not None:
                raise self.device_error
            if self._is_closing:
                raise self._make_closed_error()
            self._queue.append(request)
            self._changed.notify()

    def _dequeue(self, request: ActiveRequest) -> None:
        with self._changed:
            if request in self._queue:
                self._queue.remove(request)

    # --- in the engine's thread -------------------------------------------------------------------

    def _run_loop(self, niceness: int) -> None:
        if niceness:
            # Linux keeps it by thread.
            os.nice(niceness)
        if self._denoiser.is_compiled:
            self._architecture.raise_recompile_limit()
        with torch.inference_mode():
            while (admitted := self._admit()) is not None:
                began = perf_counter()
                try:
                    self._run_iteration(admitted)
                except Exception as error:
                    # Errors of a GPU come late, at any call: nobody knows whose they are.
                    self._fail_device(error)
                self.watchdog.beat()
                self._busy_seconds += perf_counter() - began

    def _admit(self) -> list[ActiveRequest] | None:
        """Take from the queue what the batch has room for; wait while there is nothing to do.

        Returns `None` when the engine is closed and nothing runs any more.
        """
        with self._changed:
            while not (self._queue or self._active or self._control_queue or self._is_closing):
                self._changed.wait()
            if self._is_closing or self.device_error is not None:
                while self._queue:
                    self._queue.popleft().fail(self.device_error or self._make_closed_error())
                if not self._active and not self._control_queue:
                    return None
            undone = sum(not request.is_denoised for request in self._active)
            room = max(0, self._batch_limits.limit() - undone)
            return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def _run_iteration(self, admitted: Sequence[ActiveRequest]) -> None:
        """Run one step of all active requests; decode the finished before it, encode the admitted."""
        while self._control_queue:
            self._control_queue.popleft()()
        for request in admitted:
            request.start()
        running = [request for request in self._active if request.is_active]
        denoised = [request for request in running if request.is_denoised]
        # By itself, since cached texts take no time: one image is then decoded and encoded by all threads.
        self._cpu_pool.run([partial(self._run_isolated, admitted, self._embed)])
        self._cpu_pool.run(
            [
                *(partial(self._run_isolated, group, self._decode) for group in self._group(denoised)),
                *(partial(self._run_isolated, group, self._encode) for group in self._group_photos(admitted)),
            ]
        )
        self._run_isolated(admitted, self._build_conditions)
        running = [
            request
            for request in (*running, *admitted)
            # Where the device was lost, the admitted may not even be encoded.
            if self.device_error is None and request.is_active and not request.is_denoised
        ]
        with self._changed:
            self._active = running
        batches = list(self._split_into_batches(running))
        began = perf_counter()
        for batch in batches:
            self._run_isolated(batch, self._step)
            # Of many sizes, each has its own pass.
            self.watchdog.beat()
            self._steps_by_images[len(batch)] += 1
        if self.device_error is None:
            self._limit_queue_depth()
        self._busy_step_seconds += (seconds := perf_counter() - began)
        if len(batches) == 1:
            self._batch_limits.record_step(batches[0][0].shape, len(batches[0]), seconds)

    def _group(self, requests: Sequence[ActiveRequest]) -> Iterable[Sequence[ActiveRequest]]:
        """Group for the autoencoder: by size, each group within its limit."""
        return _split(requests, _pixel_shape, self._autoencoder_limits)

    def _group_photos(self, requests: Sequence[ActiveRequest]) -> Iterator[Sequence[ActiveRequest]]:
        """Group for encoding, where a photo counts once, whoever wants images of it."""
        by_photo: dict[int, list[ActiveRequest]] = {}
        for request in requests:
            by_photo.setdefault(id(request.params.image), []).append(request)
        for group in self._group([several[0] for several in by_photo.values()]):
            yield [request for first in group for request in by_photo[id(first.params.image)]]

    def _split_into_batches(self, requests: Sequence[ActiveRequest]) -> Iterable[Sequence[ActiveRequest]]:
        """Group for a step: by shape, each group within its limit."""
        return _split(requests, lambda request: request.shape, self._batch_limits)

    def _run_isolated(self, requests: Sequence[ActiveRequest], work: BatchWork) -> None:
        """Run the work; if it fails, run it in halves, so that only the faulty request fails."""
        requests = [request for request in requests if request.is_active]
        if not requests or self.device_error is not None:
            return
        try:
            work(requests)
            return
        except Exception as error:
            # Without its frames, which hold what filled the memory.
            failure = error.with_traceback(None)
        if is_fatal(failure):
            self._fail_device(failure)
            return
        if is_out_of_memory(failure):
            self._recover_memory(requests, work)
        if len(requests) == 1:
            requests[0].fail(translate_error(failure, self.name, self.device))
            return
        half = self._find_half(requests, work)
        self._run_isolated(requests[:half], work)
        self._run_isolated(requests[half:], work)

    def _recover_memory(self, requests: Sequence[ActiveRequest], work: BatchWork) -> None:
        if self._architecture.device.type == "cuda":
            torch.cuda.empty_cache()
        if work == self._step:
            self._batch_limits.lower(requests[0].shape, len(requests))
        elif work == self._encode:
            photos = {id(request.params.image) for request in requests}
            self._autoencoder_limits.lower(_pixel_shape(requests[0]), len(photos))
        elif work == self._decode:
            self._autoencoder_limits.lower(_pixel_shape(requests[0]), len(requests))

    def _find_half(self, requests: Sequence[ActiveRequest], work: BatchWork) -> int:
        """Return where to cut. A photo is encoded once for all its images, so cutting there saves nothing."""
        if work == self._encode:
            photos = [id(request.params.image) for request in requests]
            starts = [place for place in range(1, len(photos)) if photos[place] != photos[place - 1]]
            if starts:
                return starts[len(starts) // 2]
        return len(requests) // 2

    def _fail_device(self, error: Exception) -> None:
        device_error = DeviceLost(self.device, f"{type(error).__name__}: {error}")
        device_error.__cause__ = error
        self.fail_device(device_error)

    def _submit(self, request: ActiveRequest, work: Callable[[], None]) -> None:
        """Run the work in the I/O pool; an error of a GPU may be met only there, where it is waited for."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                if is_fatal(error):
                    self._fail_device(error)
                else:
                    request.fail(translate_error(error, self.name, self.device))

        self._io_pool.submit(run)

    # --- work ---------------------------------------------------------------------------------------

    def _embed(self, requests: Sequence[ActiveRequest]) -> None:
        """Embed each request's texts; cached ones cost nothing."""
        texts = {
            text
            for request in requests
            for text in self._architecture.list_texts(request.params)
            if text is not None
        }
        found = {text: self._embeddings.get(text) for text in texts}
        new = [text for text, embedding in found.items() if embedding is None]
        if new:
            try:
                embedded = self._architecture.embed(new)
            except UnusablePrompt as error:
                # Told only by the request that fails alone: it is one of its own two.
                name = "prompt" if error.text == requests[0].params.prompt else "negativePrompt"
                raise InvalidRequest(name, error.text, error.expected) from error
            for text, embedding in zip(new, embedded, strict=True):
                self._embeddings.put(text, embedding)
                found[text] = embedding
        known: dict[Text, Embedding] = {
            text: embedding for text, embedding in found.items() if embedding is not None
        }
        for request in requests:
            request.embeddings = known

    def _build_conditions(self, requests: Sequence[ActiveRequest]) -> None:
        for request in requests:
            height, width = request.pixels.shape[-2:]
            request.conditions = self._architecture.build_conditions(
                request.params, request.embeddings, request.latents, (height, width)
            )

    def _encode(self, requests: Sequence[ActiveRequest]) -> None:
        photos = {id(request.params.image): request.pixels for request in requests}
        places = {photo: place for place, photo in enumerate(photos)}
        generators = [torch.Generator().manual_seed(request.params.seed) for request in requests]
        draws = [
            (places[id(request.params.image)], generator)
            for request, generator in zip(requests, generators, strict=True)
        ]
        latents = self._architecture.encode(torch.cat(list(photos.values())), draws)
        for request, one, generator in zip(requests, latents, generators, strict=True):
            request.set_latents(one, Trajectory.start(request.plan, one, generator))
        self._autoencoder_limits.record_success(_pixel_shape(requests[0]), len(photos))

    def _step(self, requests: Sequence[ActiveRequest]) -> None:
        trajectories = [request.trajectory for request in requests]
        # Taken before the step, which moves the trajectories on.
        weights = [trajectory.denoised_weights for trajectory in trajectories]
        tensors = self._denoiser.step(trajectories, [request.conditions for request in requests])
        for index, request in enumerate(requests):
            request.record_step()
            if self._previewer is not None and request.claim_preview():
                self._send_preview(self._previewer, request, weights[index], tensors, index)

    def _send_preview(
        self,
        previewer: Previewer,
        request: ActiveRequest,
        weights: tuple[float, float],
        tensors: StepTensors,
        index: int,
    ) -> None:
        latents = weights[0] * tensors.inputs[index] + weights[1] * tensors.outputs[index]
        self._submit(request, partial(request.encode_preview, _copy_to_cpu(previewer.to_rgb(latents))))

    def _decode(self, requests: Sequence[ActiveRequest]) -> None:
        latents = torch.stack([request.trajectory.sample for request in requests])
        pixels = self._architecture.decode(latents.to(self._architecture.dtype))
        self._autoencoder_limits.record_success(_pixel_shape(requests[0]), len(requests))
        self._images_generated += len(requests)
        for request, one in zip(requests, pixels, strict=True):
            self._submit(request, partial(self._deliver, request, one, _copy_to_cpu(one)))

    def _deliver(self, request: ActiveRequest, pixels: Tensor, on_cpu: PendingTensor) -> None:
        """Screen the image and send it. In the I/O pool, so that no step waits for a safety checker."""
        with torch.inference_mode():
            screened, is_withheld = self._architecture.screen(pixels)
            request.deliver(on_cpu if screened is pixels else screened.cpu, is_withheld)

    def _limit_queue_depth(self) -> None:
        """Let a GPU be at most one step ahead, or a new request would wait for everything launched."""
        if self._architecture.device.type != "cuda":
            return
        before, self._last_step_event = self._last_step_event, torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
        self._last_step_event.record()
        if before is not None:
            before.synchronize()

    # --- warming up -----------------------------------------------------------------------------------

    def _measure(self, size: int, guidance: float) -> None:
        params = EngineRequest(
            image=Image.new("RGB", (size, size)), prompt="", seed=0, strength=1.0, steps=2, guidance=guidance
        )
        photo = self._architecture.to_pixels(params.image)
        [latents] = self._architecture.encode(photo, [(0, torch.Generator())])
        texts = [text for text in self._architecture.list_texts(params) if text is not None]
        embeddings: dict[Text, Embedding] = dict(zip(texts, self._architecture.embed(texts), strict=True))
        conditions = self._architecture.build_conditions(params, embeddings, latents, (size, size))
        self._previewer = Previewer(self._architecture.encode_mode)
        if self._architecture.device.type == "cpu":
            self._choose_memory_formats(latents, conditions)
        shape, rows = tuple(latents.shape), len(conditions.rows)
        seconds: dict[tuple[int, int], float] = {}
        hopeless: set[int] = set()
        began = perf_counter()
        for images in self._batch_limits.candidates():
            # The usual number of lanes comes last, when all is warm.
            known = self._denoiser.list_lanes(images * rows)
            ways = [lanes for lanes in reversed(known) if lanes not in hopeless]
            try:
                for lanes in ways:
                    if self._is_first_slower:
                        self._time_step(latents, conditions, images, lanes)
                    seconds[images, lanes] = self._time_step(latents, conditions, images, lanes)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            least = min(seconds[images, lanes] for lanes in ways)
            if least > _SLOW_STEP_SECONDS:
                break
            slowest = least * (_HOPELESS if perf_counter() - began < _COMPARING_SECONDS else 1)
            hopeless |= {lanes for lanes in ways if seconds[images, lanes] > slowest}
        # Others may use the device too, and not all of the time: the least of some rounds counts.
        quick = [way for way, taken in seconds.items() if taken < _QUICK_STEP_SECONDS]
        for images, lanes in quick * _EXTRA_ROUNDS:
            again = self._time_step(latents, conditions, images, lanes)
            seconds[images, lanes] = min(seconds[images, lanes], again)
        fastest: dict[int, float] = {}
        for images in dict.fromkeys(images for images, _ in seconds):
            by_lanes = {lanes: taken for (many, lanes), taken in seconds.items() if many == images}
            lanes = _find_fastest(by_lanes, usual=max(by_lanes))
            self._denoiser.set_lanes(images * rows, lanes)
            fastest[images] = by_lanes[lanes]
        if fastest:
            self._batch_limits.set_from_measurements(shape, fastest, self._cpu_pool.size)
            self._autoencoder_limits.set_reference((1, 3, size, size))
        if fastest and self._denoiser.is_compiled:
            self._compile_buckets(latents, conditions, max(fastest) * rows)
        self._denoiser.finish_warming_up()
        self.watchdog.is_compiling = False

    def _compile_buckets(self, latents: Tensor, conditions: Conditions, most: int) -> None:
        """Run the denoiser with each number of rows that may come, so that no job waits for its compilation.

        Images without guidance have fewer rows than those that were measured.
        """
        count = 1
        while count <= bucket_of(most):
            rows, weights = [conditions.rows[0]] * count, [1 / count] * count
            self._denoiser.step([self._start_trajectory(latents)], [Conditions(rows=rows, weights=weights)])
            self.watchdog.beat()
            count *= 2

    def _choose_memory_formats(self, latents: Tensor, conditions: Conditions) -> None:
        """Lay out the weights of each part as is fastest with one image.

        By the time of the CPU, which others' load does not change: one try of each is enough.
        """

        def decode() -> None:
            self._architecture.decode(latents[None])

        def step() -> None:
            self._denoiser.step([self._start_trajectory(latents)], [conditions])

        works: dict[Part, Callable[[], None]] = {"vae": decode, "unet": step}
        if self._denoiser.is_compiled:
            del works["unet"]
        for part, work in works.items():
            usual = self._architecture.memory_formats[part]
            seconds: dict[torch.memory_format, float] = {}
            for memory_format in sorted(_MEMORY_FORMATS, key=lambda one: one == usual):
                self._architecture.set_memory_format(part, memory_format)
                began = process_time()
                self._cpu_pool.run([work])
                seconds[memory_format] = process_time() - began
                self.watchdog.beat()
                if seconds[memory_format] > _SLOW_STEP_SECONDS:
                    break
            chosen = _find_fastest(seconds, usual) if usual in seconds else usual
            self._architecture.set_memory_format(part, chosen)

    @property
    def _is_first_slower(self) -> bool:
        """True if a shape's first step is compiled, or has a GPU choose its kernels."""
        return self._architecture.device.type != "cpu" or self._denoiser.is_compiled

    def _describe_tuning(self) -> dict[str, str]:
        formats = self._architecture.memory_formats
        return {
            **{part: str(chosen).removeprefix("torch.") for part, chosen in formats.items()},
            **({} if self._is_first_slower else self._denoiser.describe_lanes()),
        }

    def _start_trajectory(self, latents: Tensor) -> Trajectory:
        return Trajectory.start(self._samplers[None].plan(2, 1.0), latents, torch.Generator())

    def _time_step(self, latents: Tensor, conditions: Conditions, images: int, lanes: int) -> float:
        """Return the seconds of one step of so many images, in so many passes side by side."""
        self._denoiser.set_lanes(images * len(conditions.rows), lanes)
        trajectories = [self._start_trajectory(latents) for _ in range(images)]
        began = perf_counter()
        self._denoiser.step(trajectories, [conditions] * images)
        if self._architecture.device.type == "cuda":
            torch.cuda.synchronize()
        self.watchdog.beat()
        return perf_counter() - began


def _adapt(pipeline: Any, name: str) -> type[Architecture]:
    architecture = find_architecture(pipeline)
    if architecture is None:
        raise ModelUnusable(name, f"the steps of {type(pipeline).__name__} are not known from inside")
    return architecture


def _find_fastest(seconds: Mapping[_Way, float], usual: _Way) -> _Way:
    """Return the way that takes least; the usual one if no other gains clearly."""
    least = min(seconds, key=lambda way: seconds[way])
    return least if seconds[least] <= _CLEAR_GAIN * seconds[usual] else usual


def _pixel_shape(request: ActiveRequest) -> Shape:
    return tuple(request.pixels.shape)


def _split(
    requests: Sequence[ActiveRequest], shape_of: Callable[[ActiveRequest], Shape], limits: BatchLimits
) -> Iterator[list[ActiveRequest]]:
    """Yield groups of equal shape, each within the limit of that shape."""
    for shape, group in groupby(sorted(requests, key=shape_of), shape_of):
        same, limit = list(group), limits.limit(shape)
        for start in range(0, len(same), limit):
            yield same[start : start + limit]


def _copy_to_cpu(tensor: Tensor) -> PendingTensor:
    """Start a copy to the CPU that another thread can wait for while this one goes on."""
    if tensor.device.type != "cuda":
        on_cpu = tensor.cpu()
        return lambda: on_cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
