"""The engine on a CUDA device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.engines.engine import Engine, EngineRequest, EngineResult
from avatarforge.diffusion.engines.sequential import SequentialEngine
from avatarforge.diffusion.models import pipelines
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import img2img_checkpoint, loaded, write_manifest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIDE = Catalogue().read("avatar-mini").size
REQUEST = EngineRequest(
    image=Image.new("RGB", (SIDE, SIDE), (180, 140, 120)),
    prompt="neon portrait of a person",
    seed=1,
    strength=0.6,
    steps=30,
    guidance=4.0,
)


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32"])
def engine(request: Any) -> Iterator[Engine]:
    manifest = Catalogue().read("avatar-mini")
    pipelines.import_libraries(threads=0)
    dtype = pipelines.pick_dtype(request.param, manifest, "cuda")
    with BatchingEngine(pipelines.load(manifest, "cuda", dtype), manifest.name, threads=1) as engine:
        yield engine


async def result_of(engine: Engine, request: EngineRequest) -> EngineResult:
    last = [update async for update in engine.generate(request)][-1]
    assert isinstance(last, EngineResult)
    return last


async def test_a_picture_is_made_on_the_gpu(engine: Engine) -> None:
    first, again = await result_of(engine, REQUEST), await result_of(engine, REQUEST)
    assert engine.device == "cuda:0"
    assert first.image.tobytes() == again.image.tobytes()
    assert all(seconds > 0 for seconds in first.timings.values())


async def test_the_automatic_choice_takes_a_gpu_that_was_set_aside() -> None:
    model = await loaded(ModelLoader(DiffusionSettings(num_gpus=1)), "avatar-mini")
    with model.engine:
        assert (model.engine.device, model.dtype in {"bfloat16", "float16"}) == ("cuda:0", True)


async def test_without_a_gpu_set_aside_the_cpu_is_taken() -> None:
    model = await loaded(ModelLoader(DiffusionSettings(num_gpus=0)), "avatar-mini")
    with model.engine:
        assert model.engine.device == "cpu"


@pytest.mark.parametrize("offload", ["model", "sequential"])
async def test_weights_that_lie_in_the_machines_memory_make_the_same_picture(
    tmp_path: Path, offload: str
) -> None:
    path = write_manifest(
        tmp_path, "m", folder=str(img2img_checkpoint()), pipeline="StableDiffusionImg2ImgPipeline"
    )
    here = await loaded(ModelLoader(DiffusionSettings(models_dir=tmp_path, num_gpus=1)), "m")
    path.write_text(f"{path.read_text()}offload: {offload}\n")
    away = await loaded(ModelLoader(DiffusionSettings(models_dir=tmp_path, num_gpus=1)), "m")
    with here.engine, away.engine:
        assert isinstance(away.engine, SequentialEngine)
        assert away.engine.device.startswith("cuda")
        expected, made = await result_of(here.engine, REQUEST), await result_of(away.engine, REQUEST)
    difference = np.abs(np.asarray(expected.image, float) - np.asarray(made.image, float))
    assert difference.mean() < 4


async def test_a_model_that_the_free_memory_does_not_hold_is_loaded_after_the_old_one_has_gone() -> None:
    loader = ModelLoader(DiffusionSettings(num_gpus=1))
    manifest = await loader.read_manifest("avatar-mini")
    assert await loader.fits_beside(manifest)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (512 << 20), dtype=torch.uint8, device="cuda")
    assert not await loader.fits_beside(manifest)
    del taken
    assert await loader.fits_beside(manifest)
