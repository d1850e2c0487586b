"""Changing the model that serves, with real checkpoints."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.loader import LoadedModel, ModelLoader
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.domain.errors import DeviceFailed, ImageWithheld, ModelMissing, ModelUnusable
from avatarforge.domain.replicas import ReplicaState
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import add_safety_checker, img2img_checkpoint, loaded, write_manifest
from tests.families import photo
from tests.waiting import wait_until

REQUEST = EngineRequest(image=photo(1), prompt="neon", seed=1, strength=1.0, steps=2, guidance=2.0)
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Impatient(ModelManager):
    MODEL_WAIT_SECONDS = 0.2


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models that work, and others whose weights are missing, no numbers, others than they should be, or
    cut off."""
    for name in ("first", "second"):
        write_manifest(tmp_path, name, folder=str(img2img_checkpoint()))
    shutil.copytree(img2img_checkpoint(), tmp_path / "hollow", ignore=shutil.ignore_patterns("diffusion_*"))
    write_manifest(tmp_path, "broken", folder="hollow")
    return tmp_path


def loader_of(models: Path, **settings: str) -> ModelLoader:
    given = {"models_dir": models, "threads": 1, "device": "cpu", "niceness": 0, "max_batch": 1} | settings
    return ModelLoader(DiffusionSettings.model_validate(given))


@pytest.fixture
async def manager(models: Path) -> AsyncIterator[ModelManager]:
    manager = Impatient("first", loader_of(models))
    manager.start()
    yield manager
    await manager.close()


async def serves(manager: ModelManager, name: str) -> None:
    await wait_until(lambda: manager.describe()["model"] == name, deadline=30)


async def failed(manager: ModelManager) -> str:
    failure = await wait_until(lambda: manager.failure, deadline=30)
    assert failure is not None
    return failure.reason


def write_not_finite(models: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(img2img_checkpoint(), models / "c")
    weights = models / "c" / "unet" / WEIGHTS
    save_file({key: value * np.nan for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    write_manifest(models, "bad", folder="c")


def write_wrong_hash(models: Path) -> None:
    path = write_manifest(models, "bad", folder=str(img2img_checkpoint()))
    file = img2img_checkpoint() / "unet" / WEIGHTS
    path.write_text(f"{path.read_text()}sha256:\n  {file}: '{'0' * 64}'\n")


def write_cut_off(models: Path) -> None:
    shutil.copytree(img2img_checkpoint(), models / "c")
    weights = models / "c" / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100_000])
    write_manifest(models, "bad", folder="c")


def write_wrong_name(models: Path) -> None:
    write_manifest(models, "other", folder=str(img2img_checkpoint())).rename(models / "bad.yaml")


# --- desired models -------------------------------------------------------------------------------------


async def test_the_first_desired_model_serves(manager: ModelManager) -> None:
    assert manager.state is ReplicaState.LOADING
    async with manager.lease() as model:
        assert model.manifest.name == "first"
    assert manager.state is ReplicaState.SERVING
    described = manager.describe()
    assert list(described["seconds"]) == ["import", "read", "measure", "first_image"]
    del described["seconds"]
    assert described == {
        "model": "first",
        "desiredModel": "first",
        "failure": None,
        "device": "cpu",
        "dtype": "float32",
    }


async def test_loading_runs_few_of_the_default_steps(models: Path) -> None:
    path = write_manifest(models, "slow", folder=str(img2img_checkpoint()))
    path.write_text(path.read_text().replace("steps: 2", "steps: 500"))
    model = await loaded(loader_of(models), "slow")
    model.engine.close()
    assert sum(model.engine.report().steps_by_images.values()) < 250


async def test_a_safety_checker_that_withholds_the_first_image_leaves_the_model_usable(models: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = Path(shutil.copytree(img2img_checkpoint(), models / "strict"))
    add_safety_checker(checkpoint)
    weights = checkpoint / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    # Every image is nearer to what is unsafe than this.
    tensors["concept_embeds_weights"] -= 3
    save_file(tensors, weights, {"format": "pt"})
    write_manifest(models, "strict", folder="strict")
    model = await loaded(loader_of(models), "strict")
    with model.engine as engine, pytest.raises(ImageWithheld):
        await engine.generate_image(REQUEST)


async def test_a_name_before_the_first_load_replaces_it(manager: ModelManager) -> None:
    manager.set_desired("second")
    async with manager.lease() as model:
        assert model.manifest.name == "second"


async def test_a_new_desired_model_serves_and_who_runs_keeps_the_old(manager: ModelManager) -> None:
    async with manager.lease() as before:
        manager.set_desired("second")
        await serves(manager, "second")
        async with manager.lease() as after:
            assert (before.manifest.name, after.manifest.name) == ("first", "second")
        # Still open, since it is held: a closed engine takes no work.
        await before.engine.warm_up(128, 2.0)
    with pytest.raises(DeviceFailed, match="closed"):
        await before.engine.warm_up(128, 2.0)


async def test_the_same_name_again_changes_nothing(manager: ModelManager) -> None:
    async with manager.lease() as before:
        pass
    manager.changed.clear()
    manager.set_desired("first")
    manager.changed.clear()
    await asyncio.wait_for(manager.changed.wait(), 30)
    assert manager.serving_model is before


async def test_a_changed_manifest_of_the_same_name_is_loaded(manager: ModelManager, models: Path) -> None:
    async with manager.lease() as before:
        pass
    path = models / "first.yaml"
    path.write_text(path.read_text().replace("title: first", "title: changed"))
    manager.set_desired("first")
    await wait_until(lambda: manager.serving_model is not before, deadline=30)
    assert manager.serving_model is not None
    assert manager.serving_model.manifest.title == "changed"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (write_not_finite, "not finite"),
        (write_wrong_hash, "but the manifest says 0000"),
        (write_cut_off, "is truncated: 100,000 of"),
        (write_wrong_name, "says that its name is 'other'"),
        (lambda models: None, "no manifest of this name"),
    ],
)
async def test_a_model_that_cannot_be_loaded_leaves_the_old_one_and_the_failure_says_why(
    manager: ModelManager, models: Path, make: object, reason: str
) -> None:
    assert callable(make)
    make(models)
    await serves(manager, "first")
    manager.set_desired("bad")
    assert reason in await failed(manager)
    assert (manager.describe()["model"], manager.describe()["desiredModel"]) == ("first", "bad")
    async with manager.lease() as model:
        assert model.manifest.name == "first"
    manager.check_health()


def spoil_tensor(folder: Path, file: str, key: str, value: Any) -> None:
    """Replace a tensor in a file of weights; `None` takes it away."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / file) | {key: value}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / file, {"format": "pt"})


def write_kinds_of_broken_models(models: Path) -> dict[str, str]:
    """Models that are broken in different ways, with the reasons that are expected."""
    import torch

    unet, vae, text = (f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors")
    tensors = {
        "missing": (text, "final_layer_norm.bias", None, "part 'text_encoder' lacks final_layer_norm.bias"),
        "surplus": (unet, "class_embedding.weight", torch.ones(1), "for which it has no place"),
        "inpainting": (unet, "conv_in.weight", torch.zeros((32, 9, 3, 3)), "an inpainting UNet"),
        "infinite": (vae, "decoder.layers.0.bias", torch.full((16,), float("inf")), "not finite"),
    }
    reasons = {}
    for name, (file, key, value, reasons[name]) in tensors.items():
        folder = Path(shutil.copytree(img2img_checkpoint(), models / f"{name}-checkpoint"))
        spoil_tensor(folder, file, key, value)
        write_manifest(models, name, folder=str(folder))
    folder = Path(shutil.copytree(img2img_checkpoint(), models / "page-checkpoint"))
    (folder / unet).write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    write_manifest(models, "page", folder=str(folder))
    (models / "a.safetensors").write_bytes((img2img_checkpoint() / vae).read_bytes())
    for name, lines in {
        "adapter": "loras: [{file: a.safetensors}]",
        "vae": "vae: nowhere.safetensors",
        "layers": "clip_skip: 9",
        "checker": "safety_checker: true",
    }.items():
        path = write_manifest(models, name, folder=str(img2img_checkpoint()))
        path.write_text(f"{path.read_text()}{lines}\n")
    path = write_manifest(models, "defaults", folder=str(img2img_checkpoint()))
    path.write_text(path.read_text().replace("strength: 1.0", "strength: 0.2"))
    return reasons | {
        "page": "holds HTML in place of weights",
        "adapter": "its LoRA a.safetensors holds nothing for any layer of the model",
        "vae": "nowhere.safetensors is not there",
        "layers": "its text encoder has 3 layers",
        "checker": "asks for a safety checker",
        "defaults": "it must be at least 1/2",
    }


async def failed_with(manager: ModelManager, name: str) -> str:
    """Why this model could not be loaded."""
    await wait_until(lambda: getattr(manager.failure, "model", None) == name, deadline=30)
    return await failed(manager)


async def test_no_job_fails_while_broken_models_of_every_kind_are_desired(
    manager: ModelManager, models: Path
) -> None:
    await serves(manager, "first")
    reasons = write_kinds_of_broken_models(models)
    is_over = asyncio.Event()
    made = 0

    async def work() -> None:
        nonlocal made
        while not is_over.is_set():
            async with manager.lease() as model:
                assert model.manifest.name == "first"
                await model.engine.generate_image(REQUEST)
                made += 1

    async with asyncio.TaskGroup() as workers:
        for _ in range(2):
            workers.create_task(work())
        for name, reason in reasons.items():
            manager.set_desired(name)
            found = await failed_with(manager, name)
            assert reason in found
            assert len(found) <= 300
            await wait_until(lambda before=made: made > before, deadline=30)
        is_over.set()


async def test_going_back_clears_the_failure(manager: ModelManager) -> None:
    await serves(manager, "first")
    manager.set_desired("nosuch")
    await failed(manager)
    manager.set_desired("first")
    await wait_until(lambda: manager.failure is None, deadline=30)


# --- without the desired model ---------------------------------------------------------------------------


async def test_without_any_model_generations_are_given_back_until_one_loads(manager: ModelManager) -> None:
    manager.set_desired("broken")
    await wait_until(lambda: manager.state is ReplicaState.NO_MODEL, deadline=30)
    with pytest.raises(ModelMissing, match="broken"):
        async with manager.lease():
            pass
    manager.set_desired("second")
    assert manager.state is ReplicaState.LOADING
    async with manager.lease() as model:
        assert model.manifest.name == "second"


async def test_a_model_that_is_repaired_is_found_without_another_request(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelManager, "RETRY_SECONDS", 0.1)
    manager = ModelManager("later", loader_of(models))
    manager.start()
    try:
        await failed(manager)
        write_manifest(models, "later", folder=str(img2img_checkpoint()))
        await serves(manager, "later")
        assert manager.failure is None
    finally:
        await manager.close()


async def test_a_replica_that_starts_with_a_broken_model_serves_the_last_good_model(models: Path) -> None:
    async def last_good() -> str:
        return "second"

    manager = ModelManager("broken", loader_of(models))
    manager.start(last_good)
    try:
        async with manager.lease() as model:
            assert model.manifest.name == "second"
        assert "'broken' cannot be used" in await failed(manager)
        manager.set_desired("first")
        await serves(manager, "first")
        assert manager.failure is None
    finally:
        await manager.close()


async def test_generations_wait_while_another_model_is_loaded_instead(models: Path) -> None:
    told = asyncio.Event()

    async def last_good() -> str:
        await told.wait()
        return "second"

    manager = Impatient("broken", loader_of(models))
    manager.start(last_good)
    try:
        await failed(manager)
        assert manager.state is ReplicaState.LOADING

        async def name() -> str:
            async with manager.lease() as model:
                return model.manifest.name

        waiting = asyncio.create_task(name())
        await asyncio.wait({waiting}, timeout=2 * Impatient.MODEL_WAIT_SECONDS)
        assert not waiting.done()
        told.set()
        assert await asyncio.wait_for(waiting, 30) == "second"
    finally:
        await manager.close()


async def test_who_waits_for_the_first_model_can_be_cancelled(manager: ModelManager) -> None:
    async def hold() -> None:
        async with manager.lease():
            pass

    waiting = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()


# --- memory that does not hold two --------------------------------------------------------------------------


async def test_an_engine_that_does_not_close_does_not_leave_the_replica_draining(models: Path) -> None:
    def stuck() -> None:
        raise RuntimeError("the device hangs")

    manager = Impatient("first", loader_of(models, swap="drain"))
    manager.start()
    try:
        async with manager.lease() as first:
            close = first.engine.close
        first.engine.close = stuck  # type: ignore[method-assign]  # as a driver's fault would have it
        manager.set_desired("second")
        assert "the device hangs" in await failed(manager)
        await serves(manager, "first")
        assert manager.state is ReplicaState.SERVING
        close()
    finally:
        await manager.close()


class OneAtATime(ModelLoader):
    """A loader whose memory holds one model: it notes when two are there."""

    def __init__(self, models: Path, swap: str) -> None:
        given = {
            "models_dir": models,
            "threads": 1,
            "device": "cpu",
            "niceness": 0,
            "max_batch": 1,
            "swap": swap,
        }
        super().__init__(DiffusionSettings.model_validate(given))
        self.loaded: list[LoadedModel] = []

    async def load(self, manifest: Manifest) -> LoadedModel:
        if any(model.engine._thread.is_alive() for model in self.loaded):  # type: ignore[attr-defined]  # of both engines
            raise ModelUnusable(manifest.name, "two do not fit") from MemoryError()
        model = await super().load(manifest)
        self.loaded.append(model)
        return model


@pytest.fixture(params=["drain", "beside"])
async def narrow(request: pytest.FixtureRequest, models: Path) -> AsyncIterator[ModelManager]:
    """Memory that holds one model only: as is known before, or is found out by loading a second one."""
    manager = ModelManager("first", OneAtATime(models, request.param))
    manager.start()
    await serves(manager, "first")
    yield manager
    await manager.close()


async def test_what_runs_is_finished_first_and_who_comes_waits_for_the_new_one(narrow: ModelManager) -> None:
    async def name() -> str:
        async with narrow.lease() as model:
            return model.manifest.name

    async with narrow.lease() as before:
        narrow.set_desired("second")
        await wait_until(lambda: narrow.state is ReplicaState.DRAINING)
        waiting = asyncio.create_task(name())
        await before.engine.warm_up(128, 2.0)
        assert not waiting.done()
    assert await asyncio.wait_for(waiting, 30) == "second"
    assert (narrow.state, narrow.failure) == (ReplicaState.SERVING, None)


async def test_the_old_one_is_loaded_again_where_the_new_one_cannot(narrow: ModelManager) -> None:
    narrow.set_desired("broken")
    assert "'broken' cannot be used" in await failed(narrow)
    await serves(narrow, "first")
    async with narrow.lease() as model:
        await model.engine.warm_up(128, 2.0)
