"""The engine that denoises many pictures at once, step by step.

At every step it takes all running images, whatever their prompt, seed, strength, steps and guidance, and
asks the UNet about them together. Who comes joins at the next step; who is finished or not wanted any
more leaves at once.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from itertools import groupby
from threading import Condition, Thread
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

import torch
from PIL import Image
from torch import Tensor

from avatarforge.diffusion.buckets import Buckets
from avatarforge.diffusion.denoiser import Compilation, Denoised, Denoiser
from avatarforge.diffusion.embeddings import Embedding, EmbeddingCache
from avatarforge.diffusion.engine import (
    EngineReport,
    EngineRequest,
    EngineUpdate,
    News,
    check_length,
    check_numbers,
)
from avatarforge.diffusion.families import Conditions, Text, family_of
from avatarforge.diffusion.faults import fatal, out_of_memory, translated
from avatarforge.diffusion.lanes import Lanes
from avatarforge.diffusion.previews import Previewer
from avatarforge.diffusion.runs import Arriving, Run
from avatarforge.diffusion.schedules import Schedules, Trajectory
from avatarforge.domain.errors import DeviceFailed, ModelUnusable

_SLOW: Final = 5.0
"""Seconds of a step after which no larger batch is tried: nobody would wait for it."""
_QUICK: Final = 1.0
_ROUNDS: Final = 3
"""Steps that take less than `_QUICK` seconds are measured in so many more rounds."""

Work = Callable[[Sequence[Run]], None]
"""Something done for several pictures at once, which may be done again in smaller parts if it fails."""


class BatchingEngine:
    """Makes pictures with a pipeline that `family_of` knows.

    One thread directs the device; on a CPU it has helpers, up to `threads` in all. Photos are read and
    pictures written in other threads. The pipeline belongs to the engine from now on. Raises
    `ModelUnusable` for a pipeline of another kind.
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
    ) -> None:
        family = family_of(pipeline)
        if family is None:
            raise ModelUnusable(name, f"the steps of {type(pipeline).__name__} are not known from inside")
        self.name = name
        self.device = str(pipeline.device)
        self._family = family(pipeline)
        self._schedules = Schedules(pipeline.scheduler, strength_sets_range=family.strength_sets_range)
        self._lanes = Lanes(self._family.device, threads, niceness)
        self._denoiser = Denoiser(self._family, self._lanes, compilation)
        self._embeddings = EmbeddingCache()
        self._buckets = Buckets(max_batch)
        self._previewer: Previewer | None = None
        self._broken: DeviceFailed | None = None
        self._busy_seconds = 0.0
        self._steps_by_images: Counter[int] = Counter()
        self._pictures = 0
        self._launched: Any = None
        # What the threads share, guarded by `_changed`.
        self._changed = Condition()
        self._line: deque[Run] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._active: list[Run] = []
        self._closing = False
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self._thread = Thread(target=self._work, args=(niceness,), name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        """As `Engine.generate`."""
        check_numbers(request)
        check_length(request, self.planned_steps(request.steps, request.strength))
        run = Run(request, self.name, News())
        try:
            await self._prepared(run)
            self._join(run)
            async with aclosing(run.news.updates()) as updates:
                async for update in updates:
                    yield update
        finally:
            run.news.stop()
            self._leave(run)

    async def warm_up(self, size: int) -> None:
        """Find the number of images that is denoised at once, and the colours of previews."""
        measured: Future[None] = Future()

        def measure() -> None:
            try:
                self._measure(size)
            except Exception as error:
                measured.set_exception(translated(error, self.name, self.device))
            else:
                measured.set_result(None)

        with self._changed:
            if self._closing:
                raise self._closed()
            self._errands.append(measure)
            self._changed.notify()
        await asyncio.wrap_future(measured)

    def planned_steps(self, steps: int, strength: float) -> int:
        """As `Engine.planned_steps`."""
        return self._schedules.length(steps, strength)

    def report(self) -> EngineReport:
        """Figures of this moment; from any thread."""
        with self._changed:
            active, waiting = len(self._active), len(self._line)
        on_gpu = self._family.device.type == "cuda"
        return EngineReport(
            limit=self._buckets.limit(),
            active=active,
            waiting=waiting,
            step_seconds=self._buckets.seconds(),
            steps_by_images=dict(self._steps_by_images),
            pictures=self._pictures,
            cached_embeddings=len(self._embeddings),
            memory=torch.cuda.memory_allocated(self._family.device) if on_gpu else None,
            busy_seconds=self._busy_seconds,
        )

    @property
    def broken(self) -> DeviceFailed | None:
        """Why the device cannot be used by this process any more, if so."""
        return self._broken

    def close(self) -> None:
        """Finish the running pictures; waiting ones are never started. Waits for the thread's end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._beside.shutdown()
        self._lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- before the engine's thread ---------------------------------------------------------------

    async def _prepared(self, run: Run) -> None:
        """Read the photo and plan the steps, in another thread."""

        def prepare() -> None:
            run.pixels = self._family.pixels(run.request.image)
            run.plan = self._schedules.plan(run.request.steps, run.request.strength)

        try:
            await asyncio.get_running_loop().run_in_executor(self._beside, prepare)
        except Exception as error:
            if self._closing:
                raise self._closed() from error
            raise translated(error, self.name, self.device) from error

    def _join(self, run: Run) -> None:
        with self._changed:
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise self._closed()
            self._line.append(run)
            self._changed.notify()

    def _leave(self, run: Run) -> None:
        with self._changed:
            if run in self._line:
                self._line.remove(run)

    def _closed(self) -> DeviceFailed:
        return DeviceFailed(self.device, "the engine was closed before this picture's turn came.")

    # --- in the engine's thread -------------------------------------------------------------------

    def _work(self, niceness: int) -> None:
        if niceness:
            # Linux keeps it by thread.
            os.nice(niceness)
        with torch.inference_mode():
            while (newcomers := self._newcomers()) is not None:
                begun = perf_counter()
                self._turn(newcomers)
                self._busy_seconds += perf_counter() - begun

    def _newcomers(self) -> list[Run] | None:
        """Who joins now, as far as there is room; waits while there is nothing to do. `None` at the end."""
        with self._changed:
            while not (self._line or self._active or self._errands or self._closing):
                self._changed.wait()
            if self._closing or self._broken is not None:
                while self._line:
                    self._line.popleft().fail(self._broken or self._closed())
                if not self._active and not self._errands:
                    return None
            room = max(0, self._buckets.limit() - sum(not run.ended for run in self._active))
            return [self._line.popleft() for _ in range(min(room, len(self._line)))]

    def _turn(self, newcomers: Sequence[Run]) -> None:
        """One step for all who run, and what is due before and after it."""
        while self._errands:
            self._errands.popleft()()
        for run in newcomers:
            run.begin()
        running = [run for run in self._active if run.alive]
        finished = [run for run in running if run.ended]
        self._lanes.run(
            [
                partial(self._attempt, newcomers, self._embed),
                *(partial(self._attempt, runs, self._decode) for runs in self._groups(finished)),
                *(partial(self._attempt, runs, self._encode) for runs in self._groups(newcomers)),
            ]
        )
        running = [run for run in (*running, *newcomers) if run.alive and not run.ended]
        with self._changed:
            self._active = running
        parts = list(self._parts(running))
        begun = perf_counter()
        for part in parts:
            self._attempt(part, self._step)
            self._steps_by_images[len(part)] += 1
        self._keep_pace()
        if len(parts) == 1:
            self._buckets.note(parts[0][0].shape, len(parts[0]), perf_counter() - begun)

    def _groups(self, runs: Sequence[Run]) -> Iterable[Sequence[Run]]:
        """For the autoencoder: all together, but one by one on a CPU, where lanes gain and batches do not."""
        if self._family.device.type == "cpu":
            return [[run] for run in runs]
        by_size = sorted(runs, key=_size)
        return [list(group) for _, group in groupby(by_size, _size)]

    def _parts(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Those of equal shape, as many as one pass may hold."""
        by_shape = sorted(runs, key=lambda run: run.shape)
        for shape, group in groupby(by_shape, lambda run: run.shape):
            same, limit = list(group), self._buckets.limit(shape)
            for start in range(0, len(same), limit):
                yield same[start : start + limit]

    def _attempt(self, runs: Sequence[Run], work: Work) -> None:
        """Do the work; where it fails, in halves, so that the fault of one is its own."""
        runs = [run for run in runs if run.alive]
        if not runs or self._broken is not None:
            return
        try:
            work(runs)
            return
        except Exception as error:
            # Without its frames, which hold what filled the memory.
            fault = error.with_traceback(None)
        if fatal(fault):
            self._break(fault)
            return
        if out_of_memory(fault):
            self._make_room(runs, work)
        if len(runs) == 1:
            runs[0].fail(translated(fault, self.name, self.device))
            return
        half = len(runs) // 2
        self._attempt(runs[:half], work)
        self._attempt(runs[half:], work)

    def _make_room(self, runs: Sequence[Run], work: Work) -> None:
        if self._family.device.type == "cuda":
            torch.cuda.empty_cache()
        if work == self._step:
            self._buckets.lower(runs[0].shape, len(runs))

    def _break(self, fault: Exception) -> None:
        broken = translated(fault, self.name, self.device)
        assert isinstance(broken, DeviceFailed), "a fatal error is the device's"
        with self._changed:
            self._broken = broken
            failed, self._active = self._active, []
        for run in failed:
            run.fail(broken)

    # --- work ---------------------------------------------------------------------------------------

    def _embed(self, runs: Sequence[Run]) -> None:
        """The conditions of each. Texts that were met before cost nothing."""
        wanted = {text for run in runs for text in self._family.texts(run.request) if text is not None}
        found = {text: self._embeddings.get(text) for text in wanted}
        new = [text for text, embedding in found.items() if embedding is None]
        if new:
            for text, embedding in zip(new, self._family.embed(new), strict=True):
                self._embeddings.put(text, embedding)
                found[text] = embedding
        known: dict[Text, Embedding] = {
            text: embedding for text, embedding in found.items() if embedding is not None
        }
        for run in runs:
            height, width = run.pixels.shape[-2:]
            run.conditions = self._family.conditions(run.request, known, (height, width))

    def _encode(self, runs: Sequence[Run]) -> None:
        generators = [torch.Generator().manual_seed(run.request.seed) for run in runs]
        latents = self._family.encode(torch.cat([run.pixels for run in runs]), generators)
        for run, one, generator in zip(runs, latents, generators, strict=True):
            run.encoded(Trajectory.begun(run.plan, one, generator))

    def _step(self, runs: Sequence[Run]) -> None:
        trajectories = [run.trajectory for run in runs]
        places = [trajectory.clean for trajectory in trajectories]
        denoised = self._denoiser.step(trajectories, [run.conditions for run in runs])
        for place, run in enumerate(runs):
            run.stepped()
            if self._previewer is not None and run.wants_preview():
                self._show(run, places[place], denoised, place)

    def _show(self, run: Run, clean: tuple[float, float], denoised: Denoised, place: int) -> None:
        assert self._previewer is not None, "asked before"
        latents = clean[0] * denoised.inputs[place] + clean[1] * denoised.outputs[place]
        self._beside.submit(run.show, _arriving(self._previewer.colours(latents)))

    def _decode(self, runs: Sequence[Run]) -> None:
        latents = torch.stack([run.trajectory.sample for run in runs])
        pixels, withheld = self._family.decode(latents.to(self._family.dtype))
        self._pictures += len(runs)
        for run, one, hidden in zip(runs, pixels, withheld, strict=True):
            self._beside.submit(run.deliver, _arriving(one), hidden)

    def _keep_pace(self) -> None:
        """Let a GPU have one step ahead and not more, or who joins would wait for all that is launched."""
        if self._family.device.type != "cuda":
            return
        before, self._launched = self._launched, torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
        self._launched.record()
        if before is not None:
            before.synchronize()

    # --- warming up -----------------------------------------------------------------------------------

    def _measure(self, size: int) -> None:
        request = EngineRequest(
            image=Image.new("RGB", (size, size)), prompt="", seed=0, strength=1.0, steps=2, guidance=2.0
        )
        latents = self._family.encode(self._family.pixels(request.image), [torch.Generator()])[0]
        texts = [text for text in self._family.texts(request) if text is not None]
        embeddings: dict[Text, Embedding] = dict(zip(texts, self._family.embed(texts), strict=True))
        conditions = self._family.conditions(request, embeddings, (size, size))
        self._previewer = Previewer(
            lambda pictures: self._family.encode(pictures, [torch.Generator() for _ in pictures])
        )
        shape = tuple(latents.shape)
        seconds: dict[int, float] = {}
        for images in self._buckets.sizes():
            try:
                self._seconds_of_step(latents, conditions, images)
                seconds[images] = self._seconds_of_step(latents, conditions, images)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                break
            if seconds[images] > _SLOW:
                break
        # Others may use the device too, and not all of the time: the least of some rounds counts.
        for images in [size for size, taken in seconds.items() if taken < _QUICK] * _ROUNDS:
            seconds[images] = min(seconds[images], self._seconds_of_step(latents, conditions, images))
        if seconds:
            self._buckets.found(shape, seconds)

    def _seconds_of_step(self, latents: Tensor, conditions: Conditions, images: int) -> float:
        plan = self._schedules.plan(2, 1.0)
        trajectories = [Trajectory.begun(plan, latents, torch.Generator()) for _ in range(images)]
        begun = perf_counter()
        self._denoiser.step(trajectories, [conditions] * images)
        if self._family.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - begun


def _size(run: Run) -> tuple[int, ...]:
    return tuple(run.pixels.shape)


def _arriving(tensor: Tensor) -> Arriving:
    """The tensor on the CPU, for another thread to wait for while this one goes on."""
    if tensor.device.type != "cuda":
        here = tensor.cpu()
        return lambda: here
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
    copied.record()

    def arrived() -> Tensor:
        copied.synchronize()
        return host

    return arrived
