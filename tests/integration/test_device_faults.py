"""A device that hangs, dies, runs out of memory or is not there, as a replica meets it through torch."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avatarforge.diffusion.engines.engine import EngineRequest, EngineStep
from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.domain.errors import DeviceLost, ModelMissing
from avatarforge.domain.replicas import ReplicaState
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import img2img_checkpoint, write_manifest
from tests.waiting import wait_until

REQUEST = EngineRequest(
    image=Image.new("RGB", (128, 128)), prompt="", seed=1, strength=1.0, steps=900, guidance=1.0
)


class Convolutions:
    """Every convolution of torch calls `fault` first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        self.fault: Callable[[], None] = lambda: None
        convolve = torch.nn.Conv2d.forward

        def forward(*arguments: Any, **options: Any) -> Any:
            self.fault()
            return convolve(*arguments, **options)

        monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> Convolutions:
    return Convolutions(monkeypatch)


@pytest.fixture
def hang() -> Iterator[Callable[[], None]]:
    """A call that does not return until the test is over."""
    over = threading.Event()
    yield lambda: over.wait() and None
    over.set()


def die() -> None:
    from torch import AcceleratorError

    raise AcceleratorError("CUDA error: an illegal memory access was encountered", 700)


def manager_of(folder: Path, desired: str = "first", **settings: Any) -> ModelManager:
    for name in ("first", "second"):
        write_manifest(folder, name, folder=str(img2img_checkpoint()))
    given = {"models_dir": folder, "threads": 1, "device": "cpu", "max_batch": 1}
    return ModelManager(desired, ModelLoader(DiffusionSettings.model_validate(given | settings)))


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
async def manager(tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[ModelManager]:
    manager = manager_of(tmp_path, **settings)
    manager.start()
    yield manager
    await manager.close()


async def serves(manager: ModelManager, name: str) -> None:
    await wait_until(lambda: manager.describe()["model"] == name, deadline=60)


async def assert_lost(manager: ModelManager, reason: str) -> None:
    """Serve is told to replace the process, and tasks and reports say why."""

    def is_unfit() -> bool:
        try:
            manager.check_health()
        except DeviceLost as error:
            return reason in str(error)
        return False

    await wait_until(is_unfit, deadline=60)
    assert (manager.state, manager.serving_model) == (ReplicaState.NO_MODEL, None)
    assert manager.failure is not None
    assert reason in manager.failure.reason
    with pytest.raises(ModelMissing, match=reason):
        async with manager.lease():
            pass


@pytest.mark.parametrize("settings", [{"stall_timeout_seconds": 1}])
@pytest.mark.parametrize("after_steps", [0, 2])
async def test_a_device_that_does_not_answer_gives_its_tasks_back_and_is_lost(
    manager: ModelManager, convolutions: Convolutions, hang: Callable[[], None], after_steps: int
) -> None:
    async with manager.lease() as model:
        if not after_steps:
            convolutions.fault = hang

        async def generate() -> None:
            async with aclosing(model.engine.generate(REQUEST)) as updates:
                async for update in updates:
                    if after_steps and isinstance(update, EngineStep) and update.step == after_steps:
                        convolutions.fault = hang

        with pytest.raises(DeviceLost, match="made no step"):
            await generate()
        convolutions.fault = lambda: None
    await assert_lost(manager, "made no step")


async def test_a_device_that_dies_while_no_model_serves_is_lost(
    tmp_path: Path, convolutions: Convolutions
) -> None:
    convolutions.fault = die
    manager = manager_of(tmp_path)
    manager.start()
    try:
        await assert_lost(manager, "illegal memory access")
    finally:
        await manager.close()


async def test_a_device_that_dies_while_another_model_is_loaded_is_lost(
    manager: ModelManager, convolutions: Convolutions
) -> None:
    await serves(manager, "first")
    convolutions.fault = die
    manager.set_desired("second")
    await assert_lost(manager, "illegal memory access")


async def test_a_device_that_dies_under_an_image_is_lost(
    manager: ModelManager, convolutions: Convolutions
) -> None:
    async with manager.lease() as model:
        convolutions.fault = die
        with pytest.raises(DeviceLost, match="illegal memory access"):
            await model.engine.generate_image(REQUEST)
    await assert_lost(manager, "illegal memory access")


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "AcceleratorError"])
async def test_a_model_whose_first_image_does_not_fit_beside_the_old_one_waits_until_that_has_gone(
    manager: ModelManager, convolutions: Convolutions, kind: str
) -> None:
    import torch

    details = (2,) if kind == "AcceleratorError" else ()

    def hold_one_model() -> None:
        if sum(thread.name == "engine" for thread in threading.enumerate()) > 1:
            raise getattr(torch, kind)("CUDA error: out of memory", *details)

    await serves(manager, "first")
    convolutions.fault = hold_one_model
    manager.set_desired("second")
    await serves(manager, "second")
    assert manager.failure is None
    manager.check_health()


@pytest.mark.parametrize("settings", [{"device": "auto", "num_gpus": 1}, {"device": "cuda"}])
async def test_a_replica_that_was_given_a_gpu_and_finds_none_serves_nothing(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    manager = manager_of(tmp_path, **settings)
    manager.start()
    try:
        await assert_lost(manager, "a GPU was asked for, and torch finds none")
    finally:
        await manager.close()
