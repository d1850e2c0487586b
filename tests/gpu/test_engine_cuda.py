"""The engine on a CUDA device."""

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from avatarforge.diffusion import pipelines
from avatarforge.diffusion.batching import BatchingEngine
from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.diffusion.engine import Engine, EngineRequest, EngineResult
from avatarforge.diffusion.loading import ModelLoader
from avatarforge.settings import DiffusionSettings

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

REQUEST = EngineRequest(
    image=Image.new("RGB", (128, 128), (180, 140, 120)),
    prompt="neon portrait of a person",
    seed=1,
    strength=0.6,
    steps=30,
    guidance=4.0,
)


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32"])
def engine(request: Any) -> Iterator[Engine]:
    manifest = Catalogue().manifest("avatar-mini")
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
    model = await ModelLoader(DiffusionSettings(num_gpus=1)).load("avatar-mini")
    with model.engine:
        assert (model.engine.device, model.dtype in {"bfloat16", "float16"}) == ("cuda:0", True)


async def test_without_a_gpu_set_aside_the_cpu_is_taken() -> None:
    model = await ModelLoader(DiffusionSettings(num_gpus=0)).load("avatar-mini")
    with model.engine:
        assert model.engine.device == "cpu"
