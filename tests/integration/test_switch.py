"""Changing the model that serves, with real checkpoints."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.loading import LoadedModel, ModelLoader
from avatarforge.diffusion.switch import ModelSwitch
from avatarforge.domain.errors import DeviceFailed, ModelMissing, ModelUnusable
from avatarforge.domain.replicas import ReplicaState
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import CHECKPOINT, write_manifest
from tests.waiting import wait_until

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Impatient(ModelSwitch):
    PATIENCE = 0.2


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models that work, and others whose weights are missing, no numbers, others than they should be, or
    cut off."""
    for name in ("first", "second"):
        write_manifest(tmp_path, name, folder=str(CHECKPOINT))
    shutil.copytree(CHECKPOINT, tmp_path / "hollow", ignore=shutil.ignore_patterns("diffusion_*"))
    write_manifest(tmp_path, "broken", folder="hollow")
    return tmp_path


def loader_of(models: Path, **settings: str) -> ModelLoader:
    given = {"models_dir": models, "threads": 1, "device": "cpu", "niceness": 0, "max_batch": 1} | settings
    return ModelLoader(DiffusionSettings.model_validate(given))


@pytest.fixture
async def switch(models: Path) -> AsyncIterator[ModelSwitch]:
    switch = Impatient("first", loader_of(models))
    switch.start()
    yield switch
    await switch.close()


async def serves(switch: ModelSwitch, name: str) -> None:
    await wait_until(lambda: switch.describe()["model"] == name, deadline=30)


async def failed(switch: ModelSwitch) -> str:
    failure = await wait_until(lambda: switch.failure, deadline=30)
    assert failure is not None
    return failure.reason


def write_not_finite(models: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(CHECKPOINT, models / "c")
    weights = models / "c" / "unet" / WEIGHTS
    save_file({key: value * np.nan for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    write_manifest(models, "bad", folder="c")


def write_wrong_hash(models: Path) -> None:
    path = write_manifest(models, "bad", folder=str(CHECKPOINT))
    file = CHECKPOINT / "unet" / WEIGHTS
    path.write_text(f"{path.read_text()}sha256:\n  {file}: '{'0' * 64}'\n")


def write_cut_off(models: Path) -> None:
    shutil.copytree(CHECKPOINT, models / "c")
    weights = models / "c" / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100_000])
    write_manifest(models, "bad", folder="c")


def write_wrong_name(models: Path) -> None:
    write_manifest(models, "other", folder=str(CHECKPOINT)).rename(models / "bad.yaml")


# --- wishes ---------------------------------------------------------------------------------------------


async def test_the_first_wish_serves(switch: ModelSwitch) -> None:
    assert switch.state is ReplicaState.LOADING
    async with switch.model() as model:
        assert model.manifest.name == "first"
    assert switch.state is ReplicaState.SERVING
    described = switch.describe()
    assert described["seconds"].keys() == {"load", "warm_up"}
    del described["seconds"]
    assert described == {
        "model": "first",
        "wish": "first",
        "failure": None,
        "device": "cpu",
        "dtype": "float32",
    }


async def test_a_wish_before_the_first_load_replaces_it(switch: ModelSwitch) -> None:
    switch.wish("second")
    async with switch.model() as model:
        assert model.manifest.name == "second"


async def test_a_new_wish_serves_and_who_runs_keeps_the_old(switch: ModelSwitch) -> None:
    async with switch.model() as before:
        switch.wish("second")
        await serves(switch, "second")
        async with switch.model() as after:
            assert (before.manifest.name, after.manifest.name) == ("first", "second")
        # Still open, since it is held: a closed engine takes no work.
        await before.engine.warm_up(128)
    with pytest.raises(DeviceFailed, match="closed"):
        await before.engine.warm_up(128)


async def test_the_same_wish_again_changes_nothing(switch: ModelSwitch) -> None:
    async with switch.model() as before:
        pass
    switch.changed.clear()
    switch.wish("first")
    switch.changed.clear()
    await asyncio.wait_for(switch.changed.wait(), 30)
    assert switch.serving is before


async def test_a_changed_manifest_of_the_same_name_is_loaded(switch: ModelSwitch, models: Path) -> None:
    async with switch.model() as before:
        pass
    path = models / "first.yaml"
    path.write_text(path.read_text().replace("title: first", "title: changed"))
    switch.wish("first")
    await wait_until(lambda: switch.serving is not before, deadline=30)
    assert switch.serving is not None
    assert switch.serving.manifest.title == "changed"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (write_not_finite, "no numbers"),
        (write_wrong_hash, "but the manifest says 0000"),
        (write_cut_off, "Unable to load weights"),
        (write_wrong_name, "says that its name is 'other'"),
        (lambda models: None, "no manifest of this name"),
    ],
)
async def test_a_wish_that_cannot_be_fulfilled_leaves_the_old_one_and_is_told(
    switch: ModelSwitch, models: Path, make: object, reason: str
) -> None:
    assert callable(make)
    make(models)
    await serves(switch, "first")
    switch.wish("bad")
    assert reason in await failed(switch)
    assert (switch.describe()["model"], switch.describe()["wish"]) == ("first", "bad")
    async with switch.model() as model:
        assert model.manifest.name == "first"
    switch.check()


async def test_going_back_clears_the_failure(switch: ModelSwitch) -> None:
    await serves(switch, "first")
    switch.wish("nosuch")
    await failed(switch)
    switch.wish("first")
    await wait_until(lambda: switch.failure is None, deadline=30)


# --- without the model that was wished for ----------------------------------------------------------------


async def test_without_any_model_generations_are_given_back_until_a_wish_succeeds(
    switch: ModelSwitch,
) -> None:
    switch.wish("broken")
    await wait_until(lambda: switch.state is ReplicaState.EMPTY, deadline=30)
    with pytest.raises(ModelMissing, match="broken"):
        async with switch.model():
            pass
    switch.wish("second")
    assert switch.state is ReplicaState.LOADING
    async with switch.model() as model:
        assert model.manifest.name == "second"


async def test_a_model_that_is_put_right_is_found_without_a_new_wish(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSwitch, "RETRY", 0.1)
    switch = ModelSwitch("later", loader_of(models))
    switch.start()
    try:
        await failed(switch)
        write_manifest(models, "later", folder=str(CHECKPOINT))
        await serves(switch, "later")
        assert switch.failure is None
    finally:
        await switch.close()


async def test_a_replica_that_starts_under_a_broken_wish_serves_the_last_good_model(models: Path) -> None:
    async def last_good() -> str:
        return "second"

    switch = ModelSwitch("broken", loader_of(models), last_good)
    switch.start()
    try:
        async with switch.model() as model:
            assert model.manifest.name == "second"
        assert "'broken' cannot be used" in await failed(switch)
        switch.wish("first")
        await serves(switch, "first")
        assert switch.failure is None
    finally:
        await switch.close()


async def test_generations_wait_while_another_model_is_loaded_instead(models: Path) -> None:
    told = asyncio.Event()

    async def last_good() -> str:
        await told.wait()
        return "second"

    switch = Impatient("broken", loader_of(models), last_good)
    switch.start()
    try:
        await failed(switch)
        assert switch.state is ReplicaState.LOADING

        async def name() -> str:
            async with switch.model() as model:
                return model.manifest.name

        waiting = asyncio.create_task(name())
        await asyncio.wait({waiting}, timeout=2 * Impatient.PATIENCE)
        assert not waiting.done()
        told.set()
        assert await asyncio.wait_for(waiting, 30) == "second"
    finally:
        await switch.close()


async def test_who_waits_for_the_first_model_can_be_cancelled(switch: ModelSwitch) -> None:
    async def hold() -> None:
        async with switch.model():
            pass

    waiting = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()


async def test_a_broken_device_makes_the_replica_unfit(switch: ModelSwitch) -> None:
    async with switch.model() as model:
        model.engine._broken = DeviceFailed("cuda:0", "an illegal memory access was encountered")
    with pytest.raises(DeviceFailed):
        switch.check()


# --- memory that does not hold two --------------------------------------------------------------------------


async def test_an_engine_that_does_not_close_does_not_leave_the_replica_draining(models: Path) -> None:
    def stuck() -> None:
        raise RuntimeError("the device hangs")

    switch = Impatient("first", loader_of(models, swap="drain"))
    switch.start()
    try:
        async with switch.model() as first:
            close = first.engine.close
        first.engine.close = stuck  # type: ignore[method-assign]  # as a driver's fault would have it
        switch.wish("second")
        assert "the device hangs" in await failed(switch)
        await serves(switch, "first")
        assert switch.state is ReplicaState.SERVING
        close()
    finally:
        await switch.close()


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
async def narrow(request: pytest.FixtureRequest, models: Path) -> AsyncIterator[ModelSwitch]:
    """Memory that holds one model only: as is known before, or is found out by loading a second one."""
    switch = ModelSwitch("first", OneAtATime(models, request.param))
    switch.start()
    await serves(switch, "first")
    yield switch
    await switch.close()


async def test_what_runs_is_finished_first_and_who_comes_waits_for_the_new_one(narrow: ModelSwitch) -> None:
    async def name() -> str:
        async with narrow.model() as model:
            return model.manifest.name

    async with narrow.model() as before:
        narrow.wish("second")
        await wait_until(lambda: narrow.state is ReplicaState.DRAINING)
        waiting = asyncio.create_task(name())
        await before.engine.warm_up(128)
        assert not waiting.done()
    assert await asyncio.wait_for(waiting, 30) == "second"
    assert (narrow.state, narrow.failure) == (ReplicaState.SERVING, None)


async def test_the_old_one_is_loaded_again_where_the_new_one_cannot(narrow: ModelSwitch) -> None:
    narrow.wish("broken")
    assert "'broken' cannot be used" in await failed(narrow)
    await serves(narrow, "first")
    async with narrow.model() as model:
        await model.engine.warm_up(128)
