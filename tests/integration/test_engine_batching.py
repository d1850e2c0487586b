"""The batching engine: every picture as diffusers makes it alone, whoever else is being made."""

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from avatarforge.diffusion.engines.architectures import Architecture, SDXLArchitecture, find_architecture
from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.engines.engine import EngineRequest, EngineResult, EngineStep
from avatarforge.diffusion.engines.prompts import split_prompt
from avatarforge.diffusion.engines.sequential import SequentialEngine
from avatarforge.diffusion.models.catalogue import SchedulerName
from avatarforge.domain.errors import InvalidRequest, ModelUnusable
from tests.families import EDITING_FAMILIES, FAMILIES, SCHEDULERS, photo, scheduled, tiny
from tests.waiting import wait_until

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
        image_guidance=(1.5, 2.0, 1.2, 1.0)[number % 4],
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
        return next(
            one for one in self._pixels if np.array_equal((one * 255).round().astype("uint8"), wanted)
        )

    def __enter__(self) -> "Decoded":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


async def result_of(engine: BatchingEngine, request: EngineRequest) -> Image.Image:
    last = [update async for update in engine.generate(request)][-1]
    assert isinstance(last, EngineResult)
    return last.image


async def together(pipeline: Any, requests: Sequence[EngineRequest], **options: Any) -> list[Any]:
    """Their pixels in 0 to 1, made by one engine at the same time."""
    with Decoded(pipeline) as decoded, BatchingEngine(pipeline, "tiny", threads=2, **options) as engine:
        images = await asyncio.gather(*(result_of(engine, request) for request in requests))
        return [decoded.of(image) for image in images]


def by_diffusers(pipeline: Any, request: EngineRequest, **options: Any) -> Any:
    """The pixels that the pipeline makes alone."""
    import torch

    kind = type(pipeline).__name__
    if request.negative_prompt and "LatentConsistency" not in kind:
        options["negative_prompt"] = request.negative_prompt
    if "InstructPix2Pix" in kind:
        options["image_guidance_scale"] = request.image_guidance
    else:
        options["strength"] = request.strength
    return pipeline(
        prompt=request.prompt,
        image=request.image,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        **options,
    ).images[0]


def furthest(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    return max(float(np.abs(our - their).max()) for our, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", [*FAMILIES, *EDITING_FAMILIES])
async def test_every_family_makes_the_pictures_that_diffusers_makes(family: str) -> None:
    pipeline = tiny(family)
    made = await together(pipeline, REQUESTS)
    assert furthest(made, [by_diffusers(pipeline, request) for request in REQUESTS]) < ALIKE


@pytest.mark.parametrize("family", ["sd-epsilon", "edit", "edit-xl"])
async def test_images_of_one_photo_are_what_they_are_alone_and_the_photo_is_encoded_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, encoded = tiny(family), list[int]()
    requests = [*(replace(REQUESTS[0], seed=seed) for seed in range(3)), replace(REQUESTS[0], image=photo(5))]
    alone = [by_diffusers(pipeline, request) for request in requests]
    encode = pipeline.vae.encode

    def counting(pixels: Any) -> Any:
        encoded.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(pipeline.vae, "encode", counting)
    with Decoded(pipeline) as decoded, BatchingEngine(pipeline, "tiny", threads=2) as engine:
        # All of them wait when the engine looks for the first time.
        with engine._changed:
            making = [asyncio.create_task(result_of(engine, request)) for request in requests]
            await wait_until(lambda: len(engine._queue) == len(requests))
        images = await asyncio.gather(*making)
        made = [decoded.of(image) for image in images]
    assert furthest(made, alone) < ALIKE
    assert sum(encoded) == 2


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *(("sd-v", scheduler) for scheduler in SCHEDULERS),
        *(("sd-epsilon", scheduler) for scheduler in SCHEDULERS),
        *(("xl", scheduler) for scheduler in MANIFEST_SCHEDULERS),
        *(("edit", scheduler) for scheduler in (*MANIFEST_SCHEDULERS, "heun", "ddim-thresholding")),
    ],
)
async def test_every_scheduler_steps_as_diffusers_steps(family: str, scheduler: str) -> None:
    pipeline = scheduled(tiny(family), scheduler)
    requests = REQUESTS[:3]
    made = await together(pipeline, requests)
    assert furthest(made, [by_diffusers(pipeline, request) for request in requests]) < ALIKE


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *(("sd-epsilon", scheduler) for scheduler in MANIFEST_SCHEDULERS),
        ("edit", "ddim"),
        ("edit-xl", "euler"),
    ],
)
async def test_who_else_is_in_the_batch_makes_no_difference(family: str, scheduler: str) -> None:
    pipeline = scheduled(tiny(family), scheduler)
    among_others = await together(pipeline, REQUESTS)
    alone = await together(pipeline, [REQUESTS[3]])
    assert furthest(alone, [among_others[3]]) < ALIKE


@pytest.mark.parametrize("family", ["sd-v", "xl", "edit"])
async def test_samplers_share_a_batch_and_each_steps_as_diffusers_steps(family: str) -> None:
    """Among them one that keeps no state, some that keep much, one that draws noise, and one that clips."""
    names = [
        None,
        "euler-ancestral",
        "dpm++-2m-karras",
        "unipc",
        "heun",
        "lcm",
        "ddim-thresholding",
        "dpm-sde",
    ]
    pipeline = tiny(family)
    others = {name: scheduled(pipeline, name) for name in names if name is not None}
    requests = [replace(request, sampler=name) for request, name in zip(REQUESTS, names, strict=True)]
    schedulers = {name: other.scheduler for name, other in others.items()}
    made = await together(pipeline, requests, schedulers=schedulers)
    alone = [by_diffusers(others.get(name, pipeline), one) for name, one in zip(names, requests, strict=True)]
    assert furthest(made, alone) < ALIKE


# --- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd-epsilon", "xl", "edit-mini"])
async def test_images_of_several_sizes_are_made_side_by_side(family: str) -> None:
    pipeline = tiny(family)
    sizes = [(48, 32), (32, 32), (40, 64), (48, 32)]
    requests = [
        replace(one, image=one.image.resize(size)) for one, size in zip(REQUESTS[:4], sizes, strict=True)
    ]
    made = await together(pipeline, requests)
    assert [one.shape[1::-1] for one in made] == sizes
    assert furthest(made, [by_diffusers(pipeline, request) for request in requests]) < ALIKE


# --- long prompts ---------------------------------------------------------------------------------------

LONG = ", ".join(f"{colour} portrait of a person" for colour in ("red", "neon", "grey") * 10)
"""Of three pieces: only words of the tiny tokenizer's vocabulary are few tokens."""


def embed_pieces(pipeline: Any, text: str) -> Any:
    import torch

    pieces = split_prompt(text, pipeline.tokenizer)
    embedded = [pipeline.encode_prompt(piece.text, "cpu", 1, False)[0] for piece in pieces]
    return torch.cat(embedded, dim=1)


def by_diffusers_in_pieces(pipeline: Any, request: EngineRequest, embed: Any = embed_pieces) -> Any:
    """The pixels that the pipeline makes of the joined embeddings, each row at its own length."""
    import torch

    texts = [embed(pipeline, request.negative_prompt), embed(pipeline, request.prompt)]
    lengths = [one.shape[1] for one in texts]
    padded = [torch.nn.functional.pad(one, (0, 0, 0, max(lengths) - one.shape[1])) for one in texts]
    forward = pipeline.unet.forward

    def by_row(samples: Any, timestep: Any, encoder_hidden_states: Any, **others: Any) -> Any:
        rows = zip(samples.split(1), encoder_hidden_states.split(1), lengths, strict=True)
        answers = [
            forward(sample, timestep, encoder_hidden_states=hidden[:, :length], **others)[0]
            for sample, hidden, length in rows
        ]
        return (torch.cat(answers),)

    pipeline.unet.forward = by_row
    try:
        return pipeline(
            prompt_embeds=padded[1],
            negative_prompt_embeds=padded[0],
            image=request.image,
            strength=request.strength,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).images[0]
    finally:
        pipeline.unet.forward = forward


async def test_all_of_a_long_prompt_counts_alone_and_among_short_ones() -> None:
    pipeline = tiny("sd-epsilon")
    long = [
        replace(REQUESTS[0], prompt=LONG),
        replace(REQUESTS[0], negative_prompt=LONG),
        replace(REQUESTS[0], prompt=LONG, negative_prompt=LONG[: len(LONG) // 2]),
    ]
    expected = [by_diffusers_in_pieces(pipeline, request) for request in long]
    made = await together(pipeline, [*long, *REQUESTS])
    assert furthest(made[:3], expected) < ALIKE
    assert furthest(made[3:], [by_diffusers(pipeline, request) for request in REQUESTS]) < ALIKE
    assert furthest(await together(pipeline, long[:1]), expected[:1]) < ALIKE
    # The last words make a difference.
    strong = replace(long[0], guidance=20.0, strength=1.0)
    one, other = await together(pipeline, [strong, replace(strong, prompt=LONG + ", blurry" * 20)])
    assert furthest([one], [other]) > 10 * ALIKE


async def test_long_and_short_prompts_of_sdxl_share_a_batch() -> None:
    pipeline = tiny("xl")
    long = replace(REQUESTS[0], prompt=LONG)
    among_others = await together(pipeline, [long, *REQUESTS])
    alone = await together(pipeline, [long])
    assert furthest(among_others[:1], alone) < ALIKE
    assert furthest(among_others[1:], [by_diffusers(pipeline, request) for request in REQUESTS]) < ALIKE


# --- guidance rescale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["xl", "edit-xl"])
async def test_guidance_is_rescaled_as_diffusers_rescales_it(family: str) -> None:
    pipeline = tiny(family)
    requests = [replace(request, guidance=20.0) for request in REQUESTS[:2]] + [REQUESTS[1]]
    made = await together(pipeline, requests, guidance_rescale=0.7)
    expected = [by_diffusers(pipeline, request, guidance_rescale=0.7) for request in requests]
    assert furthest(made, expected) < ALIKE
    assert furthest(made[:1], [by_diffusers(pipeline, requests[0])]) > 5 * ALIKE
    with SequentialEngine(pipeline, "tiny", threads=1, guidance_rescale=0.7) as engine:
        image = await engine.generate_image(requests[0])
    assert (np.asarray(image) == (expected[0] * 255).round()).all()


def test_a_pipeline_that_cannot_rescale_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="does not take guidance_rescale"):
        SequentialEngine(tiny("sd-epsilon"), "tiny", threads=1, guidance_rescale=0.7)


# --- weighted prompts -----------------------------------------------------------------------------------


WEIGHTED = "(neon:1.5) portrait"
LONG_WEIGHTED = "neon " * 70 + "[(red:2)] " + "grey " * 20


def embed_weighted(pipeline: Any, text: str) -> Any:
    """As AUTOMATIC1111 does: each piece keeps its mean."""
    import torch

    plain, token, weight = {
        WEIGHTED: ("neon portrait", 1, 1.5),
        LONG_WEIGHTED: ("neon " * 70 + "red " + "grey " * 20, 71, 2 / 1.1),
    }.get(text, (text, 0, 1.0))
    first, *others = embed_pieces(pipeline, plain).detach().clone().split(77, dim=1)
    weights = torch.ones(77, 1)
    weights[token] = weight
    scaled = first * weights
    return torch.cat([scaled * first.mean() / scaled.mean(), *others], dim=1)


@pytest.mark.parametrize("clip_skip", [1, 2])
async def test_weighted_long_and_plain_prompts_share_a_batch(clip_skip: int) -> None:
    pipeline = copy.deepcopy(tiny("sd-epsilon"))
    layers = pipeline.text_encoder.encoder.layers
    pipeline.text_encoder.encoder.layers = layers[: len(layers) + 1 - clip_skip]
    # As trained ones are: without it the mean is next to nothing.
    pipeline.text_encoder.final_layer_norm.bias.data.fill_(0.3)
    strong = replace(REQUESTS[0], guidance=20.0, strength=1.0)
    requests = [
        replace(strong, prompt=WEIGHTED),
        replace(strong, prompt=LONG_WEIGHTED, negative_prompt=WEIGHTED),
        replace(strong, prompt=LONG),
        strong,
    ]
    expected = [by_diffusers_in_pieces(pipeline, request, embed_weighted) for request in requests]
    made = await together(pipeline, requests, prompt_weights="automatic1111")
    assert furthest(made, expected) < ALIKE
    [alone] = await together(pipeline, requests[:1], prompt_weights="automatic1111")
    assert furthest([alone], expected[:1]) < ALIKE
    # The weights make a difference, and where the manifest does not ask for them brackets are letters.
    assert furthest([alone], expected[3:]) > 5 * ALIKE
    letters = await together(pipeline, requests[:1])
    assert furthest(letters, [by_diffusers(pipeline, requests[0])]) < ALIKE


def embed_by_compel(pipeline: Any, text: str) -> Any:
    from compel import Compel

    if text == LONG:
        # Where compel cuts a long text is its own.
        return embed_pieces(pipeline, text)
    return Compel(pipeline.tokenizer, pipeline.text_encoder)(text)


async def test_prompts_that_compel_weighs_share_a_batch_too() -> None:
    pipeline = tiny("sd-epsilon")
    strong = replace(REQUESTS[0], guidance=20.0, strength=1.0)
    texts = ["(neon)1.5 portrait", "neon (red hair)0.5, grey-- (person)0.2", "neon portrait", LONG]
    requests = [replace(strong, prompt=text, negative_prompt=texts[0]) for text in texts]
    expected = [by_diffusers_in_pieces(pipeline, request, embed_by_compel) for request in requests]
    made = await together(pipeline, requests, prompt_weights="compel")
    assert furthest(made, expected) < ALIKE
    plain = [replace(strong, prompt="neon red hair, grey person", negative_prompt="neon portrait")]
    assert furthest(made[1:2], [by_diffusers(pipeline, *plain)]) > 5 * ALIKE


def test_a_weak_fragment_costs_a_row_in_the_piece_that_has_it_alone() -> None:
    pipeline = tiny("sd-epsilon")
    architecture = Architecture(pipeline, "compel")
    rows: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        rows.append(len(output[0]))

    hook = pipeline.text_encoder.register_forward_hook(note)
    try:
        for text in (LONG + ", (neon)0.5", "(red)0.5, " + LONG + ", (neon)0.5"):
            architecture.embed([text])
    finally:
        hook.remove()
    # All pieces in one pass, the empty text at the first alone, and each fragment.
    assert rows == [3, 1, 1, 3, 1, 1]


def test_compel_weighs_for_both_text_encoders_of_sdxl() -> None:
    import torch
    from compel import Compel, ReturnedEmbeddingsType

    pipeline = tiny("xl")
    text = "(neon)1.5 portrait, (red hair)0.5"
    theirs = [
        Compel(tokenizer, encoder, returned_embeddings_type=kind)(text)
        for kind in [ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED]
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        )
    ]
    [ours] = SDXLArchitecture(pipeline, "compel").embed([text])
    torch.testing.assert_close(ours.hidden, torch.cat(theirs, dim=-1), atol=1e-3, rtol=1e-3)


def test_each_text_encoder_of_sdxl_keeps_its_mean() -> None:
    import torch

    pipeline = tiny("xl")
    [weighted] = SDXLArchitecture(pipeline, "automatic1111").embed([WEIGHTED])
    hidden, _, pooled, _ = pipeline.encode_prompt(
        "neon portrait", device="cpu", do_classifier_free_guidance=False
    )
    split = pipeline.text_encoder.config.hidden_size
    for one in (slice(0, split), slice(split, None)):
        scaled = hidden[..., one].clone()
        scaled[:, 1] *= 1.5
        scaled *= hidden[..., one].mean() / scaled.mean()
        torch.testing.assert_close(weighted.hidden[..., one], scaled, atol=1e-3, rtol=1e-3)
    assert weighted.pooled is not None
    torch.testing.assert_close(weighted.pooled, pooled)


async def test_the_sequential_engine_takes_each_requests_sampler() -> None:
    pipeline = tiny("sd-epsilon")
    other = scheduled(pipeline, "euler-ancestral")
    schedulers = {"Euler a": other.scheduler}
    with SequentialEngine(pipeline, "tiny", threads=1, schedulers=schedulers) as engine:
        own = await engine.generate_image(REQUESTS[0])
        theirs = await engine.generate_image(replace(REQUESTS[0], sampler="Euler a"))
        again = await engine.generate_image(REQUESTS[0])
        with pytest.raises(InvalidRequest, match="one of Euler a"):
            await engine.generate_image(replace(REQUESTS[0], sampler="Heun"))
    assert own == again
    assert (np.asarray(theirs) == (by_diffusers(other, REQUESTS[0]) * 255).round()).all()


@pytest.mark.parametrize(
    ("family", "dial"),
    [
        ("sd-epsilon", {"strength": 0.8}),
        ("edit", {"image_guidance": 4.0}),
        ("edit-xl", {"image_guidance": 4.0}),
    ],
)
async def test_what_is_asked_for_makes_a_difference(family: str, dial: dict[str, Any]) -> None:
    """Or the tests of sameness would say little."""
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "watercolor"},
        {"negative_prompt": "neon"},
        {"seed": 9},
        dial,
        {"steps": 9},
        {"guidance": 9.0},
        {"image": photo(9)},
    ]
    made = await together(tiny(family), [replace(REQUESTS[0], **change) for change in changes])
    assert all(furthest([one], [made[0]]) > 10 * ALIKE for one in made[1:])


@pytest.mark.parametrize("family", ["edit", "edit-xl"])
async def test_the_sequential_engine_edits_too_and_tells_each_step(family: str) -> None:
    pipeline, request = tiny(family), replace(REQUESTS[0], steps=3, image_guidance=2.0)
    with SequentialEngine(pipeline, "tiny", threads=1) as engine:
        *steps, result = [update async for update in engine.generate(request)]
    assert isinstance(result, EngineResult)
    assert steps == [EngineStep(step=step, total_steps=3) for step in range(4)]
    expected = (by_diffusers(pipeline, request) * 255).round()
    assert (np.asarray(result.image) == expected).all()


@pytest.mark.parametrize("family", ["edit", "edit-xl"])
@pytest.mark.parametrize(
    ("guidance", "image_guidance", "rows"), [(1.0, 1.5, 1), (4.0, 1.5, 3), (4.0, 1.0, 2), (4.0, 4.0, 2)]
)
async def test_an_edit_takes_the_rows_a_step_that_have_a_weight(
    family: str, guidance: float, image_guidance: float, rows: int
) -> None:
    pipeline, taken = tiny(family), []
    request = replace(REQUESTS[0], steps=2, guidance=guidance, image_guidance=image_guidance)
    expected = by_diffusers(pipeline, request)
    hook = pipeline.unet.register_forward_pre_hook(lambda module, arguments: taken.append(len(arguments[0])))
    try:
        made = await together(pipeline, [request])
    finally:
        hook.remove()
    # The engine's two threads of the CPU share the rows of a step.
    assert sum(taken) == 2 * rows
    assert furthest(made, [expected]) < ALIKE


def test_pipelines_with_a_call_or_scheduler_of_their_own_are_not_known_from_inside() -> None:
    from diffusers import DDIMInverseScheduler, StableDiffusionInpaintPipeline

    pipeline = tiny("sd-epsilon")
    assert find_architecture(pipeline) is not None

    class Custom(type(pipeline)):  # type: ignore[misc]  # a class that is only known here
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return super().__call__(*arguments, **options)

    parts, unsafe = pipeline.components, {"requires_safety_checker": False}
    other = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    assert find_architecture(Custom(**parts, **unsafe)) is None
    assert find_architecture(type(pipeline)(**parts | {"scheduler": other}, **unsafe)) is None
    assert find_architecture(StableDiffusionInpaintPipeline(**parts, **unsafe)) is None
    # A UNet without channels for the photo.
    editing = type(tiny("edit"))(**parts, **unsafe)
    assert find_architecture(editing) is None
