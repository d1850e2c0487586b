"""Changing the model that serves, with real checkpoints."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from avatarforge.diffusion.loading import ModelLoader
from avatarforge.diffusion.switch import ModelSwitch
from avatarforge.domain.errors import DeviceFailed, ModelUnusable
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import CHECKPOINT, write_manifest
from tests.waiting import wait_until


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models that work and one whose weights are missing."""
    for name in ("first", "second"):
        write_manifest(tmp_path, name, folder=str(CHECKPOINT))
    shutil.copytree(CHECKPOINT, tmp_path / "hollow", ignore=shutil.ignore_patterns("diffusion_*"))
    write_manifest(tmp_path, "broken", folder="hollow")
    return tmp_path


@pytest.fixture
async def switch(models: Path) -> AsyncIterator[ModelSwitch]:
    loader = ModelLoader(DiffusionSettings(models_dir=models, threads=1, device="cpu", niceness=0))
    switch = ModelSwitch("first", loader.load, loader.prepare)
    switch.start()
    yield switch
    await switch.close()


async def serves(switch: ModelSwitch, name: str) -> None:
    await wait_until(lambda: switch.describe()["model"] == name, deadline=30)


async def test_the_first_wish_serves(switch: ModelSwitch) -> None:
    async with switch.model() as model:
        assert model.manifest.name == "first"
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


async def test_a_wish_that_cannot_be_fulfilled_leaves_the_old_one_and_is_told(switch: ModelSwitch) -> None:
    await serves(switch, "first")
    switch.wish("broken")
    await wait_until(lambda: switch.describe()["failure"], deadline=30)
    described = switch.describe()
    assert (described["model"], described["wish"]) == ("first", "broken")
    assert "'broken' cannot be used" in described["failure"]
    async with switch.model() as model:
        assert model.manifest.name == "first"
    switch.check()


async def test_going_back_clears_the_failure(switch: ModelSwitch) -> None:
    await serves(switch, "first")
    switch.wish("nosuch")
    await wait_until(lambda: switch.describe()["failure"], deadline=30)
    switch.wish("first")
    await wait_until(lambda: switch.describe()["failure"] is None, deadline=30)


async def test_without_any_model_generations_are_refused_until_a_wish_succeeds(switch: ModelSwitch) -> None:
    switch.wish("broken")
    with pytest.raises(ModelUnusable, match="broken"):
        async with switch.model():
            pass
    switch.wish("second")
    async with switch.model() as model:
        assert model.manifest.name == "second"


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
