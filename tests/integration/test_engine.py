"""What both engines promise, and the loading of pipelines, with a tiny checkpoint that has a strength."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import aclosing
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avatarforge.diffusion.engines.engine import Engine, EngineRequest, EngineResult, EngineStep, EngineUpdate
from avatarforge.diffusion.engines.sequential import SequentialEngine
from avatarforge.diffusion.models import pipelines
from avatarforge.diffusion.models.catalogue import Lora, Manifest
from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.domain.errors import (
    DeviceFailed,
    DeviceLost,
    ImageNotFinite,
    ImageWithheld,
    InvalidRequest,
    ModelUnusable,
    PipelineFailed,
)
from avatarforge.domain.jobs import Stage
from avatarforge.imaging.crop import square
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import CARRIED, img2img, img2img_checkpoint, load, loaded, write_manifest
from tests.families import tiny
from tests.single_file import single_file
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return img2img()


def sequential(pipeline: Any) -> Engine:
    return SequentialEngine(pipeline, "img2img", threads=1)


def batching(pipeline: Any) -> Engine:
    """With room for one picture, so that what comes second waits in both."""
    from avatarforge.diffusion.engines.batching import BatchingEngine

    return BatchingEngine(pipeline, "img2img", threads=1, max_batch=1)


@pytest.fixture(params=[sequential, batching])
def opened(request: Any) -> Any:
    """Makes an engine of one kind or the other of a pipeline."""
    return request.param


@pytest.fixture
def engine(pipeline: Any, opened: Any) -> Iterator[Engine]:
    with opened(pipeline) as engine:
        yield engine


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    data = files("avatarforge").joinpath("samples/portrait.png").read_bytes()
    return square(Image.open(BytesIO(data)), 128)[0]


@pytest.fixture
def request_of(portrait: Image.Image) -> Any:
    def made(**changes: Any) -> EngineRequest:
        values = {"prompt": "neon portrait", "seed": 1, "strength": 0.5, "steps": 10, "guidance": 4.0}
        return EngineRequest(**{"image": portrait} | values | changes)

    return made


class Denoised:
    """Counts the passes of a pipeline's UNet."""

    def __init__(self, pipeline: Any) -> None:
        self.passes = 0
        self._hook = pipeline.unet.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def __enter__(self) -> "Denoised":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


async def all_of(engine: Engine, request: EngineRequest) -> list[EngineUpdate]:
    return [update async for update in engine.generate(request)]


async def picture_of(engine: Engine, request: EngineRequest) -> Image.Image:
    last = (await all_of(engine, request))[-1]
    assert isinstance(last, EngineResult)
    return last.image


async def test_every_step_is_told_and_then_the_result(engine: Engine, request_of: Any) -> None:
    *steps, result = await all_of(engine, request_of())
    assert steps == [EngineStep(step=step, total_steps=5) for step in range(6)]
    assert isinstance(result, EngineResult)
    assert (result.image.size, result.image.mode) == ((128, 128), "RGB")
    assert list(result.timings) == [Stage.ENCODE, Stage.STEPS, Stage.DECODE]
    assert all(seconds > 0 for seconds in result.timings.values())


async def test_the_picture_is_the_one_that_the_bare_pipeline_makes(
    engine: Engine, pipeline: Any, request_of: Any, portrait: Image.Image
) -> None:
    import torch

    made = await picture_of(engine, request_of(negative_prompt="red", seed=2**64 - 1))
    bare = pipeline(
        prompt="neon portrait",
        negative_prompt="red",
        image=portrait,
        strength=0.5,
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(2**64 - 1),
    ).images[0]
    # Rounding to bytes can tell apart what differs by less than a thousandth.
    assert np.abs(np.asarray(made, int) - np.asarray(bare, int)).max() <= 1


async def test_the_seed_decides_the_picture(engine: Engine, request_of: Any) -> None:
    first, again, other = [await picture_of(engine, request_of(seed=seed)) for seed in (1, 1, 2)]
    assert first.tobytes() == again.tobytes() != other.tobytes()


async def test_closing_stops_at_the_end_of_the_step(engine: Engine, pipeline: Any, request_of: Any) -> None:
    with Denoised(pipeline) as denoised:
        async with aclosing(engine.generate(request_of(steps=40, strength=1.0))) as updates:
            async for update in updates:
                if update == EngineStep(step=2, total_steps=40):
                    break
        await picture_of(engine, request_of(steps=1, strength=1.0))
    # Some steps are done before a busy test sees the second: far from all forty.
    assert denoised.passes < 20


async def test_a_waiting_request_that_is_cancelled_never_starts(
    engine: Engine, pipeline: Any, request_of: Any
) -> None:
    with Denoised(pipeline) as denoised:
        running = asyncio.create_task(all_of(engine, request_of(steps=8, strength=1.0)))
        await wait_until(lambda: engine.report().active)
        waiting = asyncio.create_task(all_of(engine, request_of(steps=30, strength=1.0)))
        await wait_until(lambda: engine.report().waiting)
        waiting.cancel()
        await running
        await picture_of(engine, request_of(steps=1, strength=1.0))
    assert waiting.cancelled()
    assert denoised.passes == 8 + 1


async def test_requests_are_served_in_their_order(engine: Engine, request_of: Any) -> None:
    ended: list[int] = []

    async def one(number: int) -> None:
        await picture_of(engine, request_of(seed=number, steps=10))
        ended.append(number)

    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(one(number)))
        await wait_until(lambda: engine.report().active + engine.report().waiting + len(ended) == len(tasks))
    await asyncio.gather(*tasks)
    assert ended == [0, 1, 2, 3]


async def test_closing_the_engine_ends_what_waits(pipeline: Any, opened: Any, request_of: Any) -> None:
    engine = opened(pipeline)
    running = asyncio.create_task(all_of(engine, request_of(steps=12, strength=1.0)))
    await wait_until(lambda: engine.report().active)
    waiting = asyncio.create_task(all_of(engine, request_of()))
    await wait_until(lambda: engine.report().waiting)
    await asyncio.to_thread(engine.close)
    assert isinstance((await running)[-1], EngineResult)
    with pytest.raises(DeviceFailed, match="closed"):
        await waiting


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strength": 0.05}, "at least 1/10 with 10 steps"),
        ({"strength": 7.0}, "at most 1"),
        ({"strength": 0.0}, "above 0"),
        ({"strength": float("nan")}, "above 0"),
        ({"steps": 0}, "at least 1"),
    ],
)
async def test_numbers_that_make_no_picture_are_refused(
    engine: Engine, request_of: Any, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await all_of(engine, request_of(**changes))


async def test_a_fault_of_one_request_is_raised_there_and_nowhere_else(
    engine: Engine, request_of: Any
) -> None:
    with pytest.raises(PipelineFailed, match="Error: "):
        await all_of(engine, request_of(prompt=7))
    assert await picture_of(engine, request_of())


async def test_after_its_device_was_lost_an_engine_refuses_whoever_comes(
    engine: Engine, request_of: Any
) -> None:
    engine.fail_device(DeviceLost("cuda", "it has made no step for 120 seconds."))
    with pytest.raises(DeviceLost, match="made no step"):
        await picture_of(engine, request_of())


async def test_numbers_out_of_bounds_make_no_picture(engine: Engine, request_of: Any) -> None:
    with pytest.raises(ImageNotFinite):
        await all_of(engine, request_of(guidance=1e38))


async def test_a_pipeline_without_strength_runs_all_steps(pipeline: Any, request_of: Any) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=8)
    parts = {"unet": unet, "safety_checker": None, "feature_extractor": None}
    other = StableDiffusionInstructPix2PixPipeline(
        **pipeline.components | parts, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    with SequentialEngine(other, "pix2pix", threads=1) as engine:
        *_, last, result = await all_of(engine, request_of(steps=3, strength=0.1))
    assert last == EngineStep(step=3, total_steps=3)
    assert isinstance(result, EngineResult)


async def test_a_picture_that_the_safety_checker_withholds_is_an_error(
    pipeline: Any, opened: Any, request_of: Any
) -> None:
    class Strict(type(pipeline)):  # type: ignore[misc]
        def run_safety_checker(self, image: Any, *_: Any) -> Any:
            return image * 0, [True]

    strict = Strict(**pipeline.components, requires_safety_checker=False)
    strict.set_progress_bar_config(disable=True)
    with opened(strict) as engine, pytest.raises(ImageWithheld):
        await all_of(engine, request_of(steps=2))


def test_a_text_to_image_pipeline_is_refused(pipeline: Any) -> None:
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(ModelUnusable, match="does not take image"):
        sequential(plain)


# --- loading ----------------------------------------------------------------------------------------------


def described(folder: Path, /, **source: str) -> Manifest:
    return Manifest.read(write_manifest(folder, "m", **source))


def test_diffusers_picks_the_pipeline_of_a_folder_that_names_none(tmp_path: Path) -> None:
    assert (
        type(load(described(tmp_path, folder=str(img2img_checkpoint())))).__name__
        == "StableDiffusionImg2ImgPipeline"
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"folder": "nowhere"}, r"model_index\.json is not there"),
        ({"folder": str(CARRIED), "pipeline": "NoSuchPipeline"}, "no pipeline 'NoSuchPipeline'"),
        ({"folder": str(CARRIED), "pipeline": "__version__"}, "no pipeline"),
        ({"file": "w.safetensors", "config": str(CARRIED), "pipeline": "P"}, "w.safetensors is not there"),
        ({"file": "w.ckpt", "config": str(CARRIED), "pipeline": "P"}, "not a .safetensors file"),
    ],
)
def test_a_source_that_is_not_there_is_told(tmp_path: Path, source: dict[str, str], told: str) -> None:
    with pytest.raises(ModelUnusable, match=told):
        load(described(tmp_path, **source))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(img2img_checkpoint(), tmp_path / "c")
    weights = tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ModelUnusable, match=r"'unet' cannot be read: .* is truncated: 100,000 of"):
        load(described(tmp_path, folder="c"))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    shutil.copytree(img2img_checkpoint(), tmp_path / "c")
    weights = tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelUnusable, match="safetensors"):
        load(described(tmp_path, folder="c"))


async def test_a_single_file_is_loaded_with_the_configuration_beside_it(
    tmp_path: Path, pipeline: Any, request_of: Any
) -> None:
    loaded = load(single_file(tmp_path, pipeline))
    expected, found = pipeline.unet.state_dict(), loaded.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)
    with batching(loaded) as engine:
        assert await picture_of(engine, request_of(steps=2))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_is_added_to_the_weights(tmp_path: Path, pipeline: Any, layout: str) -> None:
    import torch
    from safetensors.torch import save_file

    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    before = pipeline.unet.get_submodule(layer).weight
    down, up = torch.randn((2, before.shape[1])), torch.randn((before.shape[0], 2))
    if layout == "kohya":
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        scale = 0.5 * 1.0 / 2
    else:
        tensors = {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up}
        scale = 0.5
    save_file(tensors, tmp_path / "style.safetensors")
    manifest = described(tmp_path, folder=str(img2img_checkpoint()))
    manifest = manifest.model_copy(update={"loras": (Lora(file=tmp_path / "style.safetensors", weight=0.5),)})
    after = load(manifest).unet.get_submodule(layer).weight
    assert torch.allclose(after, before + scale * up @ down, atol=1e-5)


def test_a_lora_that_is_not_there_is_told(tmp_path: Path) -> None:
    manifest = described(tmp_path, folder=str(img2img_checkpoint()))
    with pytest.raises(ModelUnusable, match=r"style\.pt is no"):
        load(manifest.model_copy(update={"loras": (Lora(file=tmp_path / "style.pt"),)}))


# Euler's schedulers in diffusers convert tensors in a way that NumPy gives up.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, "DDIMScheduler"),
        ("euler-ancestral", "EulerAncestralDiscreteScheduler"),
        ("dpm++-2m-karras", "DPMSolverMultistepScheduler"),
    ],
)
def test_the_manifest_picks_the_scheduler(tmp_path: Path, name: Any, kind: str) -> None:
    manifest = described(tmp_path, folder=str(img2img_checkpoint())).model_copy(update={"scheduler": name})
    scheduler = load(manifest).scheduler
    assert type(scheduler).__name__ == kind
    # What the checkpoint was trained for stays.
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_manifests_samplers_are_told_apart_whatever_the_models_own_is(tmp_path: Path) -> None:
    manifest = described(tmp_path, folder=str(img2img_checkpoint())).model_copy(
        update={"scheduler": "dpm++-2m-karras", "samplers": ("Euler", "DPM++ 2M SDE Karras", "UniPC")}
    )
    pipeline = load(manifest)
    made = pipelines.create_schedulers(manifest, pipeline)

    assert {
        name: (type(one).__name__, one.config.use_karras_sigmas, one.config.get("algorithm_type"))
        for name, one in made.items()
    } == {
        "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", True, "dpmsolver++"),
        "Euler": ("EulerDiscreteScheduler", False, "dpmsolver++"),
        "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", True, "sde-dpmsolver++"),
        "UniPC": ("UniPCMultistepScheduler", False, "dpmsolver++"),
    }
    assert made["DPM++ 2M Karras"] is pipeline.scheduler


def test_distilled_models_may_have_the_samplers_of_others(tmp_path: Path) -> None:
    import diffusers

    manifest = described(tmp_path, folder="unused").model_copy(update={"samplers": ("LCM", "TCD")})
    made = pipelines.create_schedulers(manifest, tiny("sd-epsilon"))
    assert {name: type(one).__name__ for name, one in made.items()} == {
        "LCM": "LCMScheduler",
        "TCD": "TCDScheduler",
    }
    manifest = manifest.model_copy(update={"scheduler": "lcm", "samplers": ("DDIM",)})
    found = pipelines.create_schedulers(manifest, SimpleNamespace(scheduler=made["LCM"]))
    assert type(found["DDIM"]) is diffusers.DDIMScheduler
    with pytest.raises(ModelUnusable, match="cannot use the sampler 'DDIM'"):
        pipelines.create_schedulers(manifest, SimpleNamespace(scheduler=diffusers.DDIMInverseScheduler()))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_latent_consistency_model_has_its_own_sampler_alone(tmp_path: Path) -> None:
    manifest = described(tmp_path, folder="unused").model_copy(update={"samplers": ("Euler a",)})
    with pytest.raises(ModelUnusable, match="cannot use the sampler 'Euler a'"):
        pipelines.create_schedulers(manifest, tiny("lcm"))


async def test_a_pipeline_that_needs_more_than_a_photo_and_a_prompt_is_unusable(tmp_path: Path) -> None:
    described(tmp_path, folder=str(img2img_checkpoint()), pipeline="StableDiffusionInpaintPipeline")
    loader = ModelLoader(DiffusionSettings(models_dir=tmp_path, threads=1))
    with pytest.raises(ModelUnusable, match="makes no image"):
        await loaded(loader, "m")


async def test_weights_that_are_no_numbers_are_refused_at_the_first_picture(
    tmp_path: Path, pipeline: Any
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(img2img_checkpoint(), tmp_path / "c")
    weights = tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * np.nan for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    described(tmp_path, folder="c")
    with pytest.raises(ModelUnusable, match="not finite"):
        await loaded(ModelLoader(DiffusionSettings(models_dir=tmp_path, threads=1)), "m")


@pytest.mark.parametrize(
    ("configured", "device", "manifests", "picked"),
    [
        ("auto", "cpu", "float16", "torch.float32"),
        ("float16", "cpu", None, "torch.float16"),
        ("auto", "mps", None, "torch.float16"),
        ("auto", "cuda", "float16", "torch.float16"),
        ("bfloat16", "cuda", "float16", "torch.bfloat16"),
    ],
)
def test_the_number_format_follows_setting_device_and_manifest(
    tmp_path: Path, configured: str, device: str, manifests: str | None, picked: str
) -> None:
    manifest = described(tmp_path, folder=str(img2img_checkpoint())).model_copy(update={"dtype": manifests})
    assert str(pipelines.pick_dtype(configured, manifest, device)) == picked


@pytest.mark.parametrize("manifests", ["bfloat16", None])
@pytest.mark.parametrize(
    ("capability", "picked"),
    [((7, 0), "torch.float16"), ((7, 5), "torch.float16"), ((8, 0), "torch.bfloat16")],
)
def test_bfloat16_is_taken_only_where_the_gpu_has_it_in_hardware(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifests: str | None,
    capability: tuple[int, int],
    picked: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    manifest = described(tmp_path, folder=str(img2img_checkpoint())).model_copy(update={"dtype": manifests})
    assert str(pipelines.pick_dtype("auto", manifest, "cuda")) == picked
