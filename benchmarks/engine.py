"""The engine beside a loop over the pipeline that it is made of: pictures a second, and how soon it reacts.

`python -m benchmarks.engine --device cpu` measures avatar-mini, `--device cuda` the architectures of Stable
Diffusion 1.5 and XL with random weights, and `python -m benchmarks engine` avatar-mini and a tiny UNet. Needs
torch, diffusers and transformers, and nothing else of what AvatarForge needs.
"""

import argparse
import asyncio
import inspect
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avatarforge.diffusion.engines.batching import BatchingEngine
    from avatarforge.diffusion.engines.engine import EngineRequest
    from benchmarks.options import Options
    from benchmarks.report import Figure, Report, Table

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "models" / "avatar-mini" / "checkpoint"

STYLES = ("watercolor", "neon", "pixel art", "oil painting", "pencil sketch", "flat illustration")
STRENGTHS, STEPS, GUIDANCES = (0.4, 0.6, 0.8), (10, 15, 20), (1.0, 4.0, 6.0)
EDITING_STEPS, IMAGE_GUIDANCES = (1, 2, 4), (1.0, 1.5, 2.0)
"""In place of steps and strengths for the carried checkpoint, which edits."""

LOOPS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "all threads": (0, {}),
    "all threads, passive": (0, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "one thread": (1, {}),
}
"""Ways to run the loop on a CPU: threads, and how OpenMP's wait for each other. The fastest one counts."""


EQUAL = 8
"""Pictures of the batch that the pipeline makes in one call."""
EQUAL_REQUESTS: Mapping[str, Mapping[str, float]] = {
    "carried": {"steps": 1, "guidance": 1.0},
    "tiny": {"steps": 20, "strength": 0.8, "guidance": 4.0},
}
"""What they ask for, by architecture: of the carried checkpoint its defaults."""

REACTIONS = (
    ("step_ms", "step of all that run", "ms", ""),
    ("join_p50", "joining, first step done, p50", "steps", ""),
    ("join_p99", "joining, first step done, p99", "steps", "≤ 3"),
    ("cancel_p50", "cancel to free slot, p50", "steps", ""),
    ("cancel_p99", "cancel to free slot, p99", "steps", "≤ 2"),
)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What the sides of one comparison took, turn by turn."""

    pictures: int
    loops: Mapping[str, Sequence[float]]
    """Seconds by way."""
    engine: Sequence[Mapping[str, float]]
    whole: Mapping[str, Sequence[float]]
    """Seconds of one call with `EQUAL` equal requests, by way."""
    engine_equal: Sequence[float]
    """Seconds of the engine for the same ones."""
    reactions: Mapping[str, float]

    @property
    def fastest(self) -> str:
        return min(self.loops, key=lambda way: median(self.loops[way]))

    @property
    def ratios(self) -> list[float]:
        """Of neighbours in time, so that what else the machine does is the same for both."""
        loop = self.loops[self.fastest]
        return [before / after["seconds"] for before, after in zip(loop, self.engine, strict=True)]

    @property
    def equal_ratios(self) -> list[float]:
        """The same beside the whole batch, in its fastest way."""
        whole = min(self.whole.values(), key=median)
        return [before / after for before, after in zip(whole, self.engine_equal, strict=True)]


# --- requests -------------------------------------------------------------------------------------------


def mixed_requests(
    number: int, size: int, steps: int | None = None, mixed_steps: Sequence[int] = STEPS
) -> "list[EngineRequest]":
    """Requests of which no two are alike; with `steps` they differ in strength, prompt and seed."""
    import numpy as np
    from PIL import Image

    from avatarforge.diffusion.engines.engine import EngineRequest

    random = np.random.default_rng(0)
    portrait = Image.open(ROOT / "avatarforge" / "samples" / "portrait.png").convert("RGB")
    portrait = portrait.resize((size, size))
    return [
        EngineRequest(
            image=portrait,
            prompt=f"{random.choice(STYLES)} portrait of a person",
            seed=seed,
            strength=float(random.choice(STRENGTHS)),
            steps=steps or int(random.choice(mixed_steps)),
            image_guidance=float(random.choice(IMAGE_GUIDANCES)),
            guidance=7.5 if steps else float(random.choice(GUIDANCES)),
        )
        for seed in range(number)
    ]


def by_loop(pipeline: Any, requests: "Sequence[EngineRequest]", whole: bool = False) -> None:
    """One after the other, as diffusers' documentation shows it; equal ones in one call with `whole`."""
    import torch

    edits = "image_guidance_scale" in inspect.signature(pipeline.__call__).parameters
    for request in requests[: 1 if whole else None]:
        many = len(requests) if whole else 1
        pipeline(
            prompt=[request.prompt] * many,
            image=[request.image] * many,
            **({"image_guidance_scale": request.image_guidance} if edits else {"strength": request.strength}),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=[torch.Generator("cpu").manual_seed(request.seed + place) for place in range(many)],
        )


async def by_engine(
    engine: "BatchingEngine", requests: "Sequence[EngineRequest]", concurrency: int | None = None
) -> None:
    """All at once; or so many at a time."""
    room = asyncio.Semaphore(concurrency or len(requests))

    async def one(request: "EngineRequest") -> None:
        async with room:
            async for _ in engine.generate(request):
                pass

    await asyncio.gather(*(one(request) for request in requests))


# --- how soon it reacts -----------------------------------------------------------------------------------


async def reactions(
    engine: "BatchingEngine", size: int, times: int, deadline: float = 120
) -> dict[str, float]:
    """From a request to its first step's end and from a cancel to the free slot, in times of a step.

    Nothing where the engine takes one image at a time. Raises `TimeoutError` after `deadline` seconds.
    """
    from dataclasses import replace

    long = replace(mixed_requests(1, size)[0], steps=900, strength=1.0, guidance=4.0)
    short = replace(long, steps=2)
    # With a place left for who comes: else it would wait for 900 steps of others.
    places = min(4, engine.report().limit - 1)
    if places < 1:
        return {}
    background = [asyncio.create_task(_drained(engine, replace(long, seed=seed))) for seed in range(places)]
    try:
        async with asyncio.timeout(deadline):
            return await _react(engine, short, places, times)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _react(
    engine: "BatchingEngine", short: "EngineRequest", places: int, times: int
) -> dict[str, float]:
    from dataclasses import replace

    await _until(lambda: engine.report().active == places)
    joined, cancelled = [], []
    for number in range(times):
        begun = time.perf_counter()
        async with aclosing(engine.generate(replace(short, seed=number))) as updates:
            async for update in updates:
                if getattr(update, "step", 0) >= 1:
                    break
            joined.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        await _until(lambda: engine.report().active == places)
        cancelled.append(time.perf_counter() - begun)
    # Of all that run with the newcomer, by the number rounded up to a power of two.
    step = engine.report().step_seconds[1 << places.bit_length()]
    return {
        "step_ms": 1000 * step,
        "join_p50": _percentile(joined, 0.5) / step,
        "join_p99": _percentile(joined, 0.99) / step,
        "cancel_p50": _percentile(cancelled, 0.5) / step,
        "cancel_p99": _percentile(cancelled, 0.99) / step,
    }


async def _until(true: Callable[[], bool], deadline: float = 60) -> None:
    """Asks twice a millisecond: the engine tells nobody when a slot becomes free."""
    ends = time.perf_counter() + deadline
    while not true():
        if time.perf_counter() > ends:
            raise TimeoutError(f"not within {deadline} s")
        await asyncio.sleep(0.0005)


async def _drained(engine: "BatchingEngine", request: "EngineRequest") -> None:
    async for _ in engine.generate(request):
        pass


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# --- a CPU: each side in a process of its own -------------------------------------------------------------


def measure_cpu(pictures: int, rounds: int, architecture: str = "carried") -> Turns:
    """The sides take turns; a side that waits for its turn does nothing."""
    with _side("engine", architecture, 0, {}) as engine:
        loops: dict[str, list[float]] = {}
        whole: dict[str, list[float]] = {}
        turns, equal = [], []
        with _all_sides(architecture) as ways:
            trial = {name: way("mixed", 4)["seconds"] for name, way in ways.items()}
            engine("mixed", 8)
            for _ in range(rounds):
                for name, way in ways.items():
                    # Those that lose by far need no more turns than one.
                    if trial[name] <= 1.3 * min(trial.values()):
                        loops.setdefault(name, []).append(way("mixed", pictures)["seconds"])
                        whole.setdefault(name, []).append(way("equal", EQUAL)["seconds"])
                turns.append(engine("mixed", pictures))
                equal.append(engine("equal", EQUAL)["seconds"])
        return Turns(
            pictures=pictures,
            loops=loops,
            engine=turns,
            whole=whole,
            engine_equal=equal,
            reactions=engine("reactions", 100),
        )


Side = Callable[[str, int], dict[str, float]]
"""Makes so many pictures, `mixed` or `equal`, and tells its figures."""


@contextmanager
def _all_sides(architecture: str) -> Iterator[dict[str, Side]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield {name: stack.enter_context(_side("loop", architecture, *way)) for name, way in LOOPS.items()}


@contextmanager
def _side(kind: str, architecture: str, threads: int, variables: Mapping[str, str]) -> Iterator[Side]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    arguments = ["--side", kind, "--side-architecture", architecture, "--threads", str(threads)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.engine", *arguments],
        cwd=ROOT,
        env=environment | dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None, "a pipe"
    assert stdout is not None, "a pipe"

    def turn(load: str, pictures: int) -> dict[str, float]:
        stdin.write(f"{load} {pictures}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"The side {kind!r} ended.")
        answer: dict[str, float] = json.loads(line)
        return answer

    try:
        yield turn
    finally:
        stdin.close()
        process.wait(30)
        stdout.close()


def serve_side(kind: str, architecture: str, threads: int) -> None:
    """In the side's process: a turn for each line of standard input."""
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    pipeline = _avatar_mini() if architecture == "carried" else random_pipeline(architecture, "cpu")
    if kind == "loop":
        for line in sys.stdin:
            load, number = line.split()
            requests = _requests(architecture, load, int(number))
            begun, worked = time.perf_counter(), time.process_time()
            by_loop(pipeline, requests, whole=load == "equal")
            figures = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - worked}
            print(json.dumps(figures), flush=True)
        return
    from avatarforge.diffusion.engines.batching import BatchingEngine

    with BatchingEngine(pipeline, architecture, threads=torch.get_num_threads()) as engine:
        asyncio.run(_serve_engine(engine, architecture))


async def _serve_engine(engine: "BatchingEngine", architecture: str) -> None:
    side = _side_pixels(architecture)
    await engine.warm_up(side, 2.0)
    for line in sys.stdin:
        load, number = line.split()
        if load == "reactions":
            print(json.dumps(await reactions(engine, side, int(number))), flush=True)
            continue
        requests, before = _requests(architecture, load, int(number)), engine.report().busy_seconds
        begun, worked = time.perf_counter(), time.process_time()
        await by_engine(engine, requests)
        seconds, report = time.perf_counter() - begun, engine.report()
        figures = {
            "seconds": seconds,
            "cpu": time.process_time() - worked,
            "busy": (report.busy_seconds - before) / seconds,
            "limit": report.limit,
        }
        print(json.dumps(figures), flush=True)


def _requests(architecture: str, load: str, number: int) -> "list[EngineRequest]":
    from dataclasses import replace

    steps = EDITING_STEPS if architecture == "carried" else STEPS
    requests = mixed_requests(number, _side_pixels(architecture), mixed_steps=steps)
    if load == "mixed":
        return requests
    alike: Any = EQUAL_REQUESTS[architecture]
    return [replace(requests[0], seed=seed, **alike) for seed in range(number)]


def _side_pixels(architecture: str) -> int:
    return _carried_side() if architecture == "carried" else SIZES[architecture]


def _carried_side() -> int:
    """Pixels: its latents are an eighth."""
    config = json.loads((CHECKPOINT / "unet" / "config.json").read_text())
    return 8 * int(config["sample_size"])


def _avatar_mini() -> Any:
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        CHECKPOINT, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- a GPU ------------------------------------------------------------------------------------------------


SIZES = {"sd15": 512, "xl": 1024, "tiny": 128}
"""Architectures that are measured with random weights, and the pixels of their images' sides."""


def measure_architecture(
    architecture: str, device: str, compilations: Sequence[str], concurrencies: Sequence[int], steps: int
) -> Iterator[str]:
    """Yield a table line by line, each as soon as it is known: loop, whole batch, then the engine's ways."""
    import torch

    size, dtype = SIZES[architecture], "bfloat16" if device == "cuda" else "float32"
    pipeline = random_pipeline(architecture, device)
    peak, flops = _matrix_peak(device), _flops_of_row(architecture)
    yield f"\n{architecture}, {size}², {dtype}, {steps} steps, strengths {STRENGTHS}, guidance 7.5"
    yield f"matrix peak, measured: {peak / 1e12:.2f} TFLOP/s; one row of the UNet: {flops / 1e9:.2f} GFLOP"
    yield f"{'':>16}  images/s  ratio  ms/step  share of peak"
    mixed = mixed_requests(8, size, steps)
    equal = [mixed[0]] * 8
    by_loop(pipeline, mixed[:1])
    loop = _seconds(lambda: by_loop(pipeline, mixed)) / len(mixed)
    yield _format_row("loop, mixed", 1 / loop, 1)
    by_loop(pipeline, equal[:1], whole=True)
    whole = _seconds(lambda: by_loop(pipeline, equal, whole=True)) / len(equal)
    yield _format_row("8 equal, whole", 1 / whole, loop / whole)
    for compilation in compilations:
        yield from _measure_engine(
            pipeline, architecture, compilation, concurrencies, steps, loop, whole, peak
        )
    if device == "cuda":
        yield f"memory at most: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def _measure_engine(
    pipeline: Any,
    architecture: str,
    compilation: str,
    concurrencies: Sequence[int],
    steps: int,
    loop: float,
    whole: float,
    peak: float,
) -> Iterator[str]:
    import torch

    from avatarforge.diffusion.engines.batching import BatchingEngine

    size, flops = SIZES[architecture], _flops_of_row(architecture)
    on_gpu = pipeline.device.type == "cuda"
    began = time.perf_counter()
    with BatchingEngine(
        pipeline,
        architecture,
        threads=1 if on_gpu else torch.get_num_threads(),
        max_batch=max(concurrencies),
        compilation=compilation,  # type: ignore[arg-type]  # argparse holds it to the choices
    ) as engine:
        asyncio.run(engine.warm_up(size, 7.5))
        report = engine.report()
        yield (
            f"engine, {compilation}: warmed up in {time.perf_counter() - began:.1f} s, limit {report.limit}, "
            f"{dict(report.tuning)}"
        )
        equal = mixed_requests(1, size, steps) * 8
        seconds = _seconds(lambda: asyncio.run(by_engine(engine, equal))) / len(equal)
        yield _format_row("8 equal", 1 / seconds, loop / seconds) + f"  {whole / seconds:.2f} x whole batch"
        for concurrency in concurrencies:
            many = mixed_requests(max(8, 2 * concurrency), size, steps)
            seconds = _seconds(lambda n=concurrency, m=many: asyncio.run(by_engine(engine, m, n)))  # type: ignore[misc]  # mypy does not infer defaults
            rows = sum(2 * int(request.steps * request.strength) for request in many)
            step = engine.report().step_seconds.get(1 << (concurrency - 1).bit_length(), float("nan"))
            yield (
                _format_row(f"{concurrency} at a time", len(many) / seconds, loop * len(many) / seconds)
                + f"  {1000 * step:7.1f}  {rows * flops / seconds / peak:13.1%}"
            )
        found = asyncio.run(reactions(engine, size, 20))
        yield "in times of a step: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items())


def _format_row(name: str, rate: float, ratio: float) -> str:
    return f"{name:>16}  {rate:8.2f}  {ratio:5.2f}"


def random_pipeline(architecture: str, device: str = "cuda") -> Any:
    """Stable Diffusion 1.5's or XL's true architecture, or a tiny one: bfloat16 on a GPU, else float32.

    Speed does not depend on what the weights are.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionXLImg2ImgPipeline,
    )
    from transformers import AutoTokenizer

    is_tiny = architecture == "tiny"
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32,) * 4 if is_tiny else (128, 256, 512, 512),
            layers_per_block=1 if is_tiny else 2,
        )
        unet = _unet(architecture)
        encoder = (
            _text_encoder(64, 2, 2, "quick_gelu") if is_tiny else _text_encoder(768, 12, 12, "quick_gelu")
        )
        second = _text_encoder(1280, 32, 20, "gelu", projected=True) if architecture == "xl" else None
    torch.set_default_dtype(torch.float32)
    # Or random weights would run out of bounds in some pictures.
    torch.nn.init.zeros_(unet.conv_out.weight)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    tokenizer.model_max_length = 77
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "unet": unet, "text_encoder": encoder, "tokenizer": tokenizer}
    if second is not None:
        pipeline = StableDiffusionXLImg2ImgPipeline(
            **parts, scheduler=scheduler, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionImg2ImgPipeline(
            **parts,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for module in (vae, unet):
        module.eval().to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _unet(architecture: str) -> Any:
    from diffusers import UNet2DConditionModel

    if architecture == "tiny":
        return UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 96, 128),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=64,
        )
    if architecture == "sd15":
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _text_encoder(width: int, layers: int, heads: int, activation: str, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _flops_of_row(architecture: str) -> float:
    """Of one latent's way through the UNet, counted without computing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side, width = {"xl": (128, 2048), "sd15": (64, 768), "tiny": (16, 64)}[architecture]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        _unet(architecture)(
            torch.empty(1, 4, side, side),
            torch.empty(1),
            torch.empty(1, 77, width),
            added_cond_kwargs=added if architecture == "xl" else None,
        )
    return float(counter.get_total_flops())


def _matrix_peak(device: str, times: int = 20) -> float:
    """FLOP/s of a large product: in bf16 on a GPU, in float32 on a CPU."""
    import torch

    side = 8192 if device == "cuda" else 1024
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    _seconds(lambda: one @ one)

    def products() -> None:
        for _ in range(times):
            one @ one

    return 2 * side**3 * times / _seconds(products)


def _seconds(work: Callable[[], object]) -> float:
    import torch

    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


# --- from the command line ----------------------------------------------------------------------------------


CPU_ARCHITECTURES = {"carried": "avatar-mini", "tiny": "a UNet of 0.5 GFLOP"}
"""What `run` measures, and their titles."""


def run(options: "Options") -> "Report":
    """As `python -m benchmarks engine`: on the CPU, with the report of all benchmarks."""
    from benchmarks.report import Report

    measured = {
        architecture: measure_cpu(options.size(32, 8), options.repeat(5), architecture)
        for architecture in CPU_ARCHITECTURES
    }
    pictures = measured["carried"].pictures
    return Report(
        title=f"Engine: {pictures} mixed pictures by step in batches and in a loop over the pipeline; "
        f"{EQUAL} equal ones, and one call of the pipeline",
        figures=[
            figure
            for architecture, turns in measured.items()
            for figure in _list_figures(CPU_ARCHITECTURES[architecture], turns, architecture == "carried")
        ],
        conditions=conditions(measured),
        tables=[
            _build_table(CPU_ARCHITECTURES[architecture], turns) for architecture, turns in measured.items()
        ],
    )


def _list_figures(title: str, turns: Turns, is_carried: bool) -> "list[Figure]":
    from benchmarks.report import Figure, spread

    seconds, react = [turn["seconds"] for turn in turns.engine], turns.reactions
    loop = median(turns.loops[turns.fastest])
    # The carried checkpoint's passes fill two cores by themselves.
    mixed, equal = ("≥ 1.15", "≥ 0.95") if is_carried else ("≥ 3", "≥ 1.0")
    return [
        *spread(f"{title}: engine / loop, mixed", turns.ratios, "x", mixed),
        *spread(f"{title}: engine / whole batch, equal", turns.equal_ratios, "x", equal),
        Figure(name=f"{title}: engine, median", value=turns.pictures / median(seconds), unit="images/s"),
        Figure(name=f"{title}: loop ({turns.fastest}), median", value=turns.pictures / loop, unit="images/s"),
        Figure(
            name=f"{title}: device busy", value=100 * median(turn["busy"] for turn in turns.engine), unit="%"
        ),
        *(
            Figure(name=f"{title}: {name}", value=react[key], unit=unit, wanted=wanted)
            for key, name, unit, wanted in REACTIONS
            if key in react
        ),
    ]


def _build_table(title: str, turns: Turns) -> "Table":
    from benchmarks.report import Table

    columns = {
        **{f"loop, {way}": seconds for way, seconds in turns.loops.items()},
        "engine": [turn["seconds"] for turn in turns.engine],
        **{f"{EQUAL} equal, {way}": seconds for way, seconds in turns.whole.items()},
        f"{EQUAL} equal, engine": turns.engine_equal,
    }
    return Table(
        title=f"Seconds by turn: {title}",
        columns=("turn", *columns),
        rows=[(number, *row) for number, row in enumerate(zip(*columns.values(), strict=True), 1)],
    )


def conditions(measured: Mapping[str, Turns]) -> dict[str, str]:
    """How it was measured."""
    limits = {name: turns.engine[-1]["limit"] for name, turns in measured.items()}
    return {
        "mixed": f"{len(STYLES)} prompts, guidance {GUIDANCES}, each its own seed; avatar-mini, "
        f"{_carried_side()} px, steps {EDITING_STEPS}, image guidances {IMAGE_GUIDANCES}; the tiny one, "
        f"{SIZES['tiny']} px, random weights, steps {STEPS}, strengths {STRENGTHS}; float32, all at once",
        "equal": f"{EQUAL} that differ in their seed: {dict(EQUAL_REQUESTS)}",
        "loop": "another process that calls the pipeline for one request after the other, or once for all "
        f"equal ones, PNG not written; the fastest of: {', '.join(LOOPS)}",
        "turns": "both sides by turns, idle in between; a ratio is of two neighbours in time",
        "joining": "4 long pictures run, fewer where the limit is lower; from a request to the end of its "
        "first step, which must wait for the running step, the photo's encoding and one step: 100 times",
        "cancel": "of the same requests, from closing to a free slot",
        "limit found at warm-up": ", ".join(f"{name}: {limit:.0f} images" for name, limit in limits.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=int, default=32, help="on a CPU, in one turn")
    parser.add_argument("--rounds", type=int, default=5, help="on a CPU")
    parser.add_argument(
        "--architecture",
        action="append",
        choices=tuple(SIZES),
        help="with random weights, in place of the carried checkpoint; on a GPU sd15 and xl by default",
    )
    parser.add_argument(
        "--compilation",
        action="append",
        choices=("none", "compile", "regional", "cudagraphs"),
        help="of --architecture; more than one may be said; none by default",
    )
    parser.add_argument("--concurrency", default="1,2,4,8,16", help="of --architecture")
    parser.add_argument("--steps", type=int, default=30, help="of --architecture")
    parser.add_argument("--minutes", type=float, default=8, help="of --architecture, for all: then it ends")
    parser.add_argument("--side", choices=("engine", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--side-architecture", default="carried", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve_side(arguments.side, arguments.side_architecture, arguments.threads)
    elif arguments.device == "cpu" and not arguments.architecture:
        _print_cpu(measure_cpu(arguments.pictures, arguments.rounds))
    else:
        _print_architectures(arguments)


def _print_cpu(turns: Turns) -> None:
    for way, seconds in turns.loops.items():
        print(f"loop, {way}: {' '.join(f'{second:.2f}' for second in seconds)} s")
    engine, busy = ([turn[name] for turn in turns.engine] for name in ("seconds", "busy"))
    print(f"engine: {' '.join(f'{second:.2f}' for second in engine)} s")
    print(f"busy: {' '.join(f'{share:.1%}' for share in busy)}")
    print(f"ratio: {' '.join(f'{ratio:.2f}' for ratio in turns.ratios)}, median {median(turns.ratios):.2f}")
    print(
        "in times of a step: " + ", ".join(f"{name} {value:.2f}" for name, value in turns.reactions.items())
    )
    equal = turns.equal_ratios
    print(f"{EQUAL} equal, beside the whole batch: {' '.join(f'{ratio:.2f}' for ratio in equal)}")
    for name, value in conditions({"carried": turns}).items():
        print(f"{name}: {value}")
    print(
        f"machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}, "
        f"load before {os.getloadavg()[0]:.2f}"
    )


def _print_architectures(arguments: argparse.Namespace) -> None:
    import diffusers
    import torch

    # Whatever hangs: what is known by then is printed.
    timer = threading.Timer(60 * arguments.minutes, _give_up, (arguments.minutes,))
    timer.daemon = True
    timer.start()
    where = (
        torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"{where}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    print("loop: pipeline(…) for one request after the other; engine: so many requests open at a time")
    concurrencies = [int(number) for number in arguments.concurrency.split(",")]
    for architecture in arguments.architecture or ("sd15", "xl"):
        for line in measure_architecture(
            architecture, arguments.device, arguments.compilation or ["none"], concurrencies, arguments.steps
        ):
            print(line, flush=True)
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    print("complete", flush=True)


def _give_up(minutes: float) -> None:
    print(f"not complete within {minutes:g} minutes", flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
