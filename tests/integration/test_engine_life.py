"""The batching engine: who joins, who leaves, and what one request's fault means to the others."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.exc import TorchDynamoException

from avatarforge.diffusion.engines import batching
from avatarforge.diffusion.engines.architectures import Embedding, EmbeddingCache, find_architecture
from avatarforge.diffusion.engines.batch_limits import BatchLimits
from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.engines.engine import EngineRequest, EngineResult, EngineStep, EngineUpdate
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.domain.errors import DeviceFailed, DeviceLost, ImageNotFinite, InvalidRequest, PipelineFailed
from benchmarks.engine import reactions
from tests.checkpoints import avatar_mini
from tests.families import photo, tiny
from tests.waiting import wait_until

SHORT = EngineRequest(image=photo(1), prompt="neon portrait", seed=1, strength=1.0, steps=4, guidance=1.0)
LONG = replace(SHORT, steps=900, prompt="watercolor")


class Passes:
    """How many images the UNet was asked about, pass by pass; `fault` is asked before each."""

    def __init__(self, pipeline: Any) -> None:
        self.images: list[int] = []
        self.fault: Any = lambda images: None
        self._hook = pipeline.unet.register_forward_pre_hook(self._noted)

    def _noted(self, module: Any, arguments: Any) -> None:
        images = len(arguments[0])
        if (fault := self.fault(images)) is not None:
            raise fault
        self.images.append(images)

    def close(self) -> None:
        self._hook.remove()


@pytest.fixture
def pipeline() -> Any:
    return tiny("sd-epsilon")


@pytest.fixture
def passes(pipeline: Any) -> Iterator[Passes]:
    passes = Passes(pipeline)
    yield passes
    passes.close()


@contextmanager
def engine_of(pipeline: Any, **options: Any) -> Iterator[BatchingEngine]:
    with BatchingEngine(pipeline, "tiny", **{"threads": 1} | options) as engine:
        yield engine


@pytest.fixture
def engine(pipeline: Any, passes: Passes) -> Iterator[BatchingEngine]:
    with engine_of(pipeline) as engine:
        yield engine


async def all_of(engine: BatchingEngine, request: EngineRequest) -> list[EngineUpdate]:
    return [update async for update in engine.generate(request)]


async def picture_of(engine: BatchingEngine, request: EngineRequest) -> Image.Image:
    last = (await all_of(engine, request))[-1]
    assert isinstance(last, EngineResult)
    return last.image


def alike(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1)


async def test_who_comes_joins_at_the_next_step_and_who_is_finished_leaves_at_once(
    engine: BatchingEngine, passes: Passes
) -> None:
    async with aclosing(engine.generate(LONG)) as long:
        async for update in long:
            if isinstance(update, EngineStep) and update.step >= 3:
                break
        steps = [update async for update in engine.generate(SHORT) if isinstance(update, EngineStep)]
        await wait_until(lambda: passes.images[-1] == 1)
    assert [update.step for update in steps] == [0, 1, 2, 3, 4]
    # Alone, then four steps together without a gap, then alone again.
    first = passes.images.index(2)
    assert passes.images[first : first + 5] == [2, 2, 2, 2, 1]


async def test_who_is_cancelled_leaves_at_the_next_step(engine: BatchingEngine, passes: Passes) -> None:
    async with aclosing(engine.generate(LONG)):
        staying = asyncio.create_task(picture_of(engine, replace(LONG, steps=100)))
        async with aclosing(engine.generate(LONG)) as leaving:
            async for update in leaving:
                if isinstance(update, EngineStep) and update.step >= 1:
                    break
        at = len(passes.images)
        await staying
    assert passes.images[at - 1] == 2
    assert set(passes.images[at + 2 :]) == {1}


async def test_there_is_room_for_as_many_as_was_said(pipeline: Any, passes: Passes) -> None:
    with engine_of(pipeline, max_batch=3) as engine:
        await asyncio.gather(*(picture_of(engine, replace(SHORT, seed=seed)) for seed in range(7)))
    assert max(passes.images) == 3


async def test_with_guidance_an_image_takes_two_rows(engine: BatchingEngine, passes: Passes) -> None:
    await picture_of(engine, replace(SHORT, guidance=4.0))
    assert set(passes.images) == {2}


async def test_lanes_share_a_pass(pipeline: Any, passes: Passes) -> None:
    with engine_of(pipeline, threads=2) as engine:
        await picture_of(engine, replace(SHORT, guidance=4.0))
    assert passes.images == [1, 1] * 4


async def test_pictures_of_different_sizes_are_made_at_the_same_time(engine: BatchingEngine) -> None:
    larger = replace(SHORT, image=photo(2).resize((64, 48)))
    alone = [await picture_of(engine, request) for request in (SHORT, larger)]
    together = await asyncio.gather(*(picture_of(engine, request) for request in (SHORT, larger)))
    assert [image.size for image in together] == [(32, 32), (64, 48)]
    assert all(map(alike, alone, together))


# --- faults -------------------------------------------------------------------------------------------------


async def test_numbers_out_of_bounds_fail_their_own_picture_only(engine: BatchingEngine) -> None:
    alone = await picture_of(engine, SHORT)
    broken, sound = await asyncio.gather(
        picture_of(engine, replace(SHORT, guidance=1e38)), picture_of(engine, SHORT), return_exceptions=True
    )
    assert isinstance(broken, ImageNotFinite)
    assert isinstance(sound, Image.Image)
    assert alike(alone, sound)


async def test_a_fault_of_one_request_is_raised_there_and_nowhere_else(engine: BatchingEngine) -> None:
    wrong: Any = replace(SHORT, prompt=7)  # type: ignore[arg-type]  # that is the fault
    requests = [replace(SHORT, seed=2), wrong, replace(SHORT, seed=3)]
    first, broken, last = await asyncio.gather(
        *(picture_of(engine, request) for request in requests), return_exceptions=True
    )
    assert isinstance(broken, PipelineFailed)
    assert isinstance(first, Image.Image)
    assert isinstance(last, Image.Image)


async def test_too_little_memory_makes_batches_smaller_and_fails_nobody(
    engine: BatchingEngine, passes: Passes
) -> None:
    requests = [replace(SHORT, seed=seed, steps=20) for seed in range(4)]
    alone = [await picture_of(engine, request) for request in requests]
    passes.images.clear()
    passes.fault = lambda images: torch.OutOfMemoryError("CUDA out of memory") if images > 2 else None
    together = await asyncio.gather(*(picture_of(engine, request) for request in requests))
    assert all(map(alike, alone, together))
    assert max(passes.images) == 2
    assert engine.report().limit == 2
    assert engine.device_error is None


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "AcceleratorError"])
async def test_too_little_memory_for_one_picture_gives_it_back(
    engine: BatchingEngine, passes: Passes, kind: str
) -> None:
    details = (2,) if kind == "AcceleratorError" else ()
    passes.fault = lambda images: getattr(torch, kind)("CUDA error: out of memory", *details)
    with pytest.raises(DeviceFailed, match="too little memory"):
        await picture_of(engine, SHORT)
    passes.fault = lambda images: None
    assert await picture_of(engine, SHORT)


async def test_a_device_that_broke_fails_whoever_is_there_and_whoever_comes(
    engine: BatchingEngine, passes: Passes
) -> None:
    running = [asyncio.create_task(picture_of(engine, LONG)) for _ in range(2)]
    await wait_until(lambda: passes.images and passes.images[-1] == 2)
    passes.fault = lambda images: torch.AcceleratorError("an illegal memory access was encountered", 700)
    assert [type(error) for error in await asyncio.gather(*running, return_exceptions=True)] == [
        DeviceLost,
        DeviceLost,
    ]
    with pytest.raises(DeviceLost, match="illegal memory access"):
        await picture_of(engine, SHORT)
    assert engine.device_error is not None


async def test_a_device_that_broke_before_the_first_step_fails_whoever_came(
    engine: BatchingEngine, pipeline: Any
) -> None:
    def broken(module: Any, arguments: Any) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered", 700)

    hook = pipeline.text_encoder.register_forward_pre_hook(broken)
    try:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            await picture_of(engine, replace(SHORT, prompt="nobody asked for this before"))
    finally:
        hook.remove()


@pytest.mark.parametrize("error", [torch.AcceleratorError, RuntimeError])
async def test_an_error_that_is_met_between_steps_fails_whoever_is_there_and_whoever_comes(
    engine: BatchingEngine, passes: Passes, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail() -> None:
        raise error("an illegal memory access was encountered")

    running = [asyncio.create_task(picture_of(engine, LONG)) for _ in range(2)]
    await wait_until(lambda: passes.images and passes.images[-1] == 2)
    # Where a GPU is waited for; of a CPU nothing is.
    monkeypatch.setattr(engine, "_limit_queue_depth", fail)
    errors = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 60)
    assert [type(one) for one in errors] == [DeviceLost, DeviceLost]
    with pytest.raises(DeviceLost, match="illegal memory access"):
        await picture_of(engine, SHORT)
    assert engine.device_error is not None


@pytest.mark.parametrize(
    ("error", "kind"), [(torch.AcceleratorError, DeviceLost), (RuntimeError, PipelineFailed)]
)
async def test_an_error_that_is_met_when_a_finished_image_is_fetched_is_told(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch, error: type[Exception], kind: type[Exception]
) -> None:
    def fail() -> Any:
        raise error("an illegal memory access was encountered")

    monkeypatch.setattr(batching, "_copy_to_cpu", lambda tensor: fail)
    with pytest.raises(kind, match="illegal memory access"):
        await asyncio.wait_for(picture_of(engine, SHORT), 60)
    assert (engine.device_error is not None) == (kind is DeviceLost)


async def test_a_warming_up_that_was_given_up_before_it_began_harms_nobody(
    engine: BatchingEngine, passes: Passes
) -> None:
    begun = threading.Event()
    go_on = threading.Event()
    passes.fault = lambda images: begun.set() or (go_on.wait(60) and None)
    running = asyncio.create_task(picture_of(engine, SHORT))
    await wait_until(begun.is_set)
    warming = asyncio.create_task(engine.warm_up(32, 1.0))
    await asyncio.sleep(0)
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    go_on.set()
    assert await running
    assert await picture_of(engine, SHORT)


async def test_decoding_takes_no_more_at_once_than_memory_held_before(
    engine: BatchingEngine, pipeline: Any
) -> None:
    decoded: list[int] = []

    def narrow(module: Any, arguments: Any) -> None:
        if (images := len(arguments[0])) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        decoded.append(images)

    # As on a GPU: a CPU decodes image by image.
    engine._autoencoder_limits = BatchLimits(8)
    hook = pipeline.vae.decoder.register_forward_pre_hook(narrow)
    try:
        for _ in range(2):
            requests = [replace(SHORT, seed=seed, steps=20) for seed in range(4)]
            assert all(await asyncio.gather(*(picture_of(engine, request) for request in requests)))
    finally:
        hook.remove()
    assert sum(decoded) == 8
    assert engine._autoencoder_limits.limit() == 2
    assert engine.report().limit == 8


async def test_encoding_takes_no_more_photos_at_once_than_memory_held_before(pipeline: Any) -> None:
    began, go_on = threading.Event(), threading.Event()
    encoded: list[int] = []

    def narrow(module: Any, arguments: Any) -> None:
        began.set()
        go_on.wait(30)
        if (photos := len(arguments[0])) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        encoded.append(photos)

    hook = pipeline.vae.encoder.register_forward_pre_hook(narrow)
    try:
        with engine_of(pipeline, max_batch=16) as engine:
            # As on a GPU: a CPU encodes photo by photo.
            engine._autoencoder_limits = BatchLimits(16)
            first = asyncio.create_task(picture_of(engine, SHORT))
            await wait_until(began.is_set)
            photos = [SHORT.image.copy() for _ in range(4)]
            requests = [
                replace(SHORT, image=image, seed=seed)
                for seed, image in enumerate([photos[0]] * 5 + photos[1:])
            ]
            others = [asyncio.create_task(picture_of(engine, request)) for request in requests]
            await wait_until(lambda: engine.report().waiting == len(others))
            go_on.set()
            assert all(await asyncio.gather(first, *others))
    finally:
        hook.remove()
    # One photo had five images: neither the limit nor the halves go by them.
    assert encoded == [1, 2, 2]
    assert engine._autoencoder_limits.limit() == 2


# --- what is measured and shown -----------------------------------------------------------------------------


async def test_texts_that_were_met_before_are_not_encoded_again(
    engine: BatchingEngine, pipeline: Any
) -> None:
    encoded: list[int] = []
    hook = pipeline.text_encoder.register_forward_pre_hook(
        lambda module, arguments: encoded.append(len(arguments[0]))
    )
    try:
        for negative in ("red", "red", "blue"):
            await picture_of(engine, replace(SHORT, guidance=4.0, negative_prompt=negative))
    finally:
        hook.remove()
    assert encoded == [2, 1]
    assert engine.report().cached_embeddings == 3


async def test_texts_are_encoded_so_many_at_a_time(engine: BatchingEngine, pipeline: Any) -> None:
    encoded: list[int] = []
    hook = pipeline.text_encoder.register_forward_pre_hook(
        lambda module, arguments: encoded.append(len(arguments[0]))
    )
    long = "neon " * 600
    requests = [replace(SHORT, prompt=f"{number} {long[5:]}") for number in range(4)]
    try:
        await asyncio.gather(*(picture_of(engine, request) for request in requests))
    finally:
        hook.remove()
    assert max(encoded) <= 16
    assert sum(encoded) == 4 * 8


async def test_a_text_that_is_too_long_is_refused_alone(engine: BatchingEngine) -> None:
    long = replace(SHORT, prompt="neon " * 601)
    answers = await asyncio.gather(
        *(picture_of(engine, request) for request in (SHORT, long, SHORT)), return_exceptions=True
    )
    assert answers[0] == answers[2]
    assert re.fullmatch(
        r"prompt is 'neon .*, but it must be at most 600 tokens long \(it has 601\)\.", str(answers[1])
    )


async def test_the_negative_prompt_is_named_where_it_is_at_fault(engine: BatchingEngine) -> None:
    with pytest.raises(InvalidRequest, match=r"^negativePrompt is 'grey .* at most 600 tokens long"):
        await picture_of(engine, replace(SHORT, guidance=2.0, negative_prompt="grey " * 601))


def test_embeddings_are_kept_up_to_so_many_bytes() -> None:
    cache = EmbeddingCache(max_bytes=1000)
    for number in range(3):
        assert cache.get("0") is not None or number == 0
        cache.put(str(number), Embedding(hidden=torch.zeros(1, 50, 2), pooled=torch.zeros(1, 10)))
    assert [cache.get(str(number)) is not None for number in range(3)] == [True, False, True]
    cache.put("long", Embedding(hidden=torch.zeros(1, 200, 2)))
    assert len(cache) == 0


async def test_a_cached_text_holds_no_memory_of_those_that_it_came_with(pipeline: Any) -> None:
    architecture = find_architecture(pipeline)
    assert architecture is not None
    for embedding in architecture(pipeline).embed(["neon", "red", "blue"]):
        assert embedding.hidden.untyped_storage().nbytes() == embedding.nbytes


async def test_warming_up_measures_steps_by_the_number_of_images(engine: BatchingEngine) -> None:
    await engine.warm_up(32, 2.0)
    report = engine.report()
    assert list(report.step_seconds)[:2] == [1, 2]
    assert all(seconds > 0 for seconds in report.step_seconds.values())
    assert 1 <= report.limit <= 8
    assert (report.active, report.waiting, report.memory_bytes) == (0, 0, None)


async def test_warming_up_tells_how_the_cpu_is_used_best(pipeline: Any) -> None:
    with engine_of(pipeline, threads=2, max_batch=2) as engine:
        await engine.warm_up(32, 1.0)
        tuning = engine.report().tuning
    assert {tuning["unet"], tuning["vae"]} <= {"channels_last", "contiguous_format"}
    assert tuning["1 row"] == "1 pass of 2 threads"
    assert tuning["2 rows"] in {"1 pass of 2 threads", "2 passes of 1 thread"}


@pytest.mark.parametrize(("slow_lanes", "rows_of_a_pass"), [(2, 2), (1, 1)])
async def test_rows_are_split_as_is_fastest_here(
    pipeline: Any, passes: Passes, monkeypatch: pytest.MonkeyPatch, slow_lanes: int, rows_of_a_pass: int
) -> None:
    # Not by the clock: on a busy machine either way may be the slower one.
    monkeypatch.setattr(BatchingEngine, "_time_step", lambda *arguments: 1.0 + (arguments[-1] == slow_lanes))
    requests = [replace(SHORT, steps=30, seed=seed) for seed in (1, 2)]
    with engine_of(pipeline, threads=2, max_batch=2) as engine:
        alone = [await picture_of(engine, request) for request in requests]
        await engine.warm_up(32, 1.0)
        passes.images.clear()
        together = await asyncio.gather(*(picture_of(engine, request) for request in requests))
    assert max(passes.images) == rows_of_a_pass
    assert all(map(alike, alone, together))


@pytest.mark.parametrize("slow", ["channels_last", "contiguous_format"])
async def test_weights_are_laid_out_as_is_fastest_here(pipeline: Any, slow: str) -> None:
    weight, layout = pipeline.vae.decoder.conv_in.weight, getattr(torch, slow)

    def burn(*_: Any) -> None:
        ends = time.process_time() + 0.2 * weight.is_contiguous(memory_format=layout)
        while time.process_time() < ends:
            pass

    hook = pipeline.vae.decoder.register_forward_pre_hook(burn)
    try:
        with engine_of(pipeline) as engine:
            await engine.warm_up(32, 1.0)
            assert engine.report().tuning["vae"] != slow
    finally:
        hook.remove()


async def test_one_image_is_encoded_denoised_and_decoded_by_all_threads(pipeline: Any) -> None:
    threads: list[int] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
        for part in (pipeline.vae.encoder, pipeline.unet, pipeline.vae.decoder)
    ]
    try:
        with engine_of(pipeline, threads=2) as engine:
            await picture_of(engine, replace(SHORT, steps=1))
    finally:
        for hook in hooks:
            hook.remove()
    assert threads == [2, 2, 2]


async def test_every_number_of_rows_that_may_come_is_compiled_before_the_first_job(
    pipeline: Any, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: set[tuple[int, bool]] = set()
    stances: list[str] = []

    def compile_watched(call: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            config = torch._dynamo.config
            limits.add((config.recompile_limit, config.fail_on_recompile_limit_hit))
            stances.append(torch._dynamo.eval_frame._stance.stance)
            return call(*arguments, **more)

        return run

    monkeypatch.setattr(torch, "compile", compile_watched)
    with engine_of(pipeline, max_batch=3, compilation="compile") as engine:
        assert engine.watchdog.is_compiling
        await engine.warm_up(32, 4.0)
        assert not engine.watchdog.is_compiling
        compiled = set(passes.images)
        passes.images.clear()
        for guidances in ([1.0], [4.0], [1.0, 4.0], [4.0, 4.0, 4.0]):
            requests = [replace(SHORT, guidance=guidance) for guidance in guidances]
            await asyncio.gather(*(picture_of(engine, request) for request in requests))
        assert {1, 2} <= set(passes.images) <= compiled == {1, 2, 4, 8}
        assert set(stances) == {"default"}
        assert limits == {(64, True)}

        stances.clear()
        other_size = replace(SHORT, image=SHORT.image.resize((48, 32)))
        await asyncio.gather(picture_of(engine, other_size), picture_of(engine, SHORT))
        # What was not foreseen holds nobody up: it runs as it is.
        assert set(stances) == {"default", "force_eager"}


@pytest.mark.parametrize("fails_at", [1, 4])
async def test_a_model_that_torch_cannot_compile_serves_as_it_is_and_says_why(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """At once, as where there is no C compiler, or at some later number of rows."""

    def compile_partly(call: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(samples: torch.Tensor, *arguments: Any, **more: Any) -> Any:
            if len(samples) >= fails_at:
                raise TorchDynamoException("No working C++ compiler found")
            return call(samples, *arguments, **more)

        return run

    with engine_of(pipeline, max_batch=4) as engine:
        await engine.warm_up(32, 4.0)
        expected = await picture_of(engine, SHORT)
        assert engine.report().compile_failure is None
    monkeypatch.setattr(torch, "compile", compile_partly)
    with engine_of(pipeline, max_batch=4, compilation="compile") as engine:
        await engine.warm_up(32, 4.0)
        report = engine.report()
        assert report.compile_failure == "TorchDynamoException: No working C++ compiler found"
        assert report.limit > 1
        assert np.allclose(await picture_of(engine, SHORT), expected, atol=1)


@pytest.mark.parametrize(
    ("places", "known"), [(1, set()), (4, {"step_ms", "join_p50", "join_p99", "cancel_p50", "cancel_p99"})]
)
async def test_how_soon_it_reacts_is_measured_wherever_a_place_can_be_left(
    pipeline: Any, places: int, known: set[str]
) -> None:
    with engine_of(pipeline, max_batch=places) as engine:
        assert set(await reactions(engine, 32, times=2, deadline=60)) == known
        await wait_until(lambda: not engine.report().active)


async def test_steps_are_counted_by_the_images_that_shared_them(engine: BatchingEngine) -> None:
    alone = engine.count_steps(SHORT.steps, SHORT.strength)
    await picture_of(engine, SHORT)
    assert (engine.report().steps_by_images, engine.report().images_generated) == ({1: alone}, 1)
    requests = [replace(SHORT, seed=seed, steps=20) for seed in range(3)]
    await asyncio.gather(*(picture_of(engine, request) for request in requests))
    report = engine.report()
    together = 3 * engine.count_steps(20, SHORT.strength)
    assert sum(images * times for images, times in report.steps_by_images.items()) == alone + together
    assert report.steps_by_images[3] > 0
    assert report.images_generated == 4


async def test_a_picture_in_the_making_is_shown_at_most_four_times_a_second() -> None:
    side = Catalogue().read("avatar-mini").size
    request = replace(LONG, image=photo(1).resize((side, side)), steps=16)
    with engine_of(avatar_mini()) as engine:
        await engine.warm_up(side, request.guidance)
        *steps, result = await all_of(engine, request)
    previews = [update.preview for update in steps if isinstance(update, EngineStep) and update.preview]
    assert isinstance(result, EngineResult)
    assert 1 <= len(previews) <= 4 * sum(result.timings.values()) + 1
    last = Image.open(BytesIO(previews[-1]))
    assert (last.format, last.size) == ("WEBP", (96, 96))
    # Small, soft and noisy, but of that picture.
    expected = np.asarray(result.image.resize((16, 16), Image.Resampling.BOX), float)
    shown = np.asarray(last.convert("RGB").resize((16, 16), Image.Resampling.BOX), float)
    assert np.corrcoef(expected.ravel(), shown.ravel())[0, 1] > 0.8


async def test_no_step_waits_for_a_safety_checker(pipeline: Any) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(type(pipeline)):  # type: ignore[misc]  # a class that is only known here
        def run_safety_checker(self, image: Any, *_: Any) -> Any:
            if not entered.is_set():
                entered.set()
                leave.wait(60)
            return image, [False]

    slow = Slow(**pipeline.components, requires_safety_checker=False)
    with engine_of(slow) as engine:
        try:
            first = asyncio.create_task(picture_of(engine, SHORT))
            await wait_until(entered.is_set)
            async with asyncio.timeout(30):
                await picture_of(engine, replace(SHORT, seed=2))
            assert not first.done()
        finally:
            leave.set()
        assert (await first).size == SHORT.image.size
