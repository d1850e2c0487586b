"""The batching engine: every picture as diffusers makes it alone, whoever else is being made."""

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from avatarforge.diffusion.batching import BatchingEngine
from avatarforge.diffusion.catalogue import SchedulerName
from avatarforge.diffusion.engine import EngineRequest, EngineResult
from avatarforge.diffusion.families import family_of
from tests.families import FAMILIES, SCHEDULERS, photo, scheduled, tiny

# Euler's schedulers in diffusers convert tensors in a way that NumPy gives up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MANIFEST_SCHEDULERS = get_args(SchedulerName)

ALIKE = 1e-3
"""Of full scale, for every pixel."""

REQUESTS = [
    EngineRequest(
        image=photo(number),
        prompt=("neon portrait", "pencil sketch portrait of a person", "watercolor")[number % 3],
        negative_prompt=("", "red hair", "blurry")[number % 3],
        seed=number,
        strength=(0.4, 1.0, 0.7, 0.5)[number % 4],
        steps=(5, 8, 6)[number % 3],
        guidance=(4.0, 1.0, 0.0, 7.5)[number % 4],
    )
    for number in range(8)
]


class Decoded:
    """The pictures that leave a pipeline's decoder, before they are rounded to bytes."""

    def __init__(self, pipeline: Any) -> None:
        self._pixels: list[Any] = []
        self._hook = pipeline.vae.decoder.register_forward_hook(self._noted)

    def _noted(self, module: Any, arguments: Any, output: Any) -> None:
        self._pixels += [(one / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() for one in output]

    def of(self, image: Image.Image) -> Any:
        """The one that was rounded to this image."""
        wanted = np.asarray(image)
        return next(one for one in self._pixels if ((one * 255).round().astype("uint8") == wanted).all())

    def __enter__(self) -> "Decoded":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


async def result_of(engine: BatchingEngine, request: EngineRequest) -> Image.Image:
    last = [update async for update in engine.generate(request)][-1]
    assert isinstance(last, EngineResult)
    return last.image


async def together(pipeline: Any, requests: Sequence[EngineRequest]) -> list[Any]:
    """Their pixels in 0 to 1, made by one engine at the same time."""
    with Decoded(pipeline) as decoded, BatchingEngine(pipeline, "tiny", threads=2) as engine:
        images = await asyncio.gather(*(result_of(engine, request) for request in requests))
        return [decoded.of(image) for image in images]


def by_diffusers(pipeline: Any, request: EngineRequest) -> Any:
    """The pixels that the pipeline makes alone."""
    import torch

    negative = {"negative_prompt": request.negative_prompt} if request.negative_prompt else {}
    if "LatentConsistency" in type(pipeline).__name__:
        negative = {}
    return pipeline(
        prompt=request.prompt,
        image=request.image,
        strength=request.strength,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        **negative,
    ).images[0]


def furthest(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    return max(float(np.abs(our - their).max()) for our, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_makes_the_pictures_that_diffusers_makes(family: str) -> None:
    pipeline = tiny(family)
    made = await together(pipeline, REQUESTS)
    assert furthest(made, [by_diffusers(pipeline, request) for request in REQUESTS]) < ALIKE


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *(("sd-v", scheduler) for scheduler in SCHEDULERS),
        *(("sd-epsilon", scheduler) for scheduler in SCHEDULERS),
        *(("xl", scheduler) for scheduler in MANIFEST_SCHEDULERS),
    ],
)
async def test_every_scheduler_steps_as_diffusers_steps(family: str, scheduler: str) -> None:
    pipeline = scheduled(tiny(family), scheduler)
    requests = REQUESTS[:3]
    made = await together(pipeline, requests)
    assert furthest(made, [by_diffusers(pipeline, request) for request in requests]) < ALIKE


@pytest.mark.parametrize("scheduler", MANIFEST_SCHEDULERS)
async def test_who_else_is_in_the_batch_makes_no_difference(scheduler: str) -> None:
    pipeline = scheduled(tiny("sd-epsilon"), scheduler)
    among_others = await together(pipeline, REQUESTS)
    alone = await together(pipeline, [REQUESTS[3]])
    assert furthest(alone, [among_others[3]]) < ALIKE


async def test_what_is_asked_for_makes_a_difference() -> None:
    """Or the tests of sameness would say little."""
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "watercolor"},
        {"negative_prompt": "neon"},
        {"seed": 9},
        {"strength": 0.8},
        {"steps": 9},
        {"guidance": 9.0},
        {"image": photo(9)},
    ]
    plain = {name: getattr(REQUESTS[0], name) for name in EngineRequest.__slots__}
    made = await together(tiny("sd-epsilon"), [EngineRequest(**plain | change) for change in changes])
    assert all(furthest([one], [made[0]]) > 10 * ALIKE for one in made[1:])


def test_pipelines_with_a_call_or_scheduler_of_their_own_are_not_known_from_inside() -> None:
    from diffusers import DDIMInverseScheduler, StableDiffusionInstructPix2PixPipeline

    pipeline = tiny("sd-epsilon")
    assert family_of(pipeline) is not None

    class Custom(type(pipeline)):  # type: ignore[misc]  # a class that is only known here
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return super().__call__(*arguments, **options)

    parts, unsafe = pipeline.components, {"requires_safety_checker": False}
    other = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    assert family_of(Custom(**parts, **unsafe)) is None
    assert family_of(type(pipeline)(**parts | {"scheduler": other}, **unsafe)) is None
    assert family_of(StableDiffusionInstructPix2PixPipeline(**parts, **unsafe)) is None
