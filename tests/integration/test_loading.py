"""What is read of a checkpoint, and what is not: pickled weights, code, the safety checker."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from avatarforge.diffusion.models import pipelines
from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.loader import _create_engine
from avatarforge.domain.errors import ModelUnusable
from avatarforge.settings import DiffusionSettings
from tests.checkpoints import add_safety_checker, img2img, img2img_checkpoint, name_in_index
from tests.single_file import single_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(img2img_checkpoint(), tmp_path / "checkpoint"))


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    values = {"name": "m", "title": "M", "family": "stable-diffusion", "licence": "none", "size": 128}
    source = {"folder": "checkpoint", "pipeline": "StableDiffusionImg2ImgPipeline"}
    (folder / "m.yaml").write_text(yaml.safe_dump(values | {"source": source} | changes))
    return Manifest.read(folder / "m.yaml")


def load(manifest: Manifest, **allowed: bool) -> Any:
    pipelines.import_libraries(threads=1)
    return pipelines.load(manifest, "cpu", torch.float32, **allowed)


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "9"}, "9"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_spin_for_a_moment_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], spins: str | None
) -> None:
    monkeypatch.setattr(os, "environ", environ := dict(environment))
    pipelines.import_libraries(threads=1)
    assert environ.get("GOMP_SPINCOUNT") == spins
    assert environ["OMP_WAIT_POLICY"] == environment.get("OMP_WAIT_POLICY", "PASSIVE")


# --- pickled weights ---------------------------------------------------------------------------------------


def pickled(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    weights = checkpoint / "unet" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def test_pickled_weights_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    pickled(checkpoint)
    with pytest.raises(ModelUnusable, match=r"its part 'unet' has no \.safetensors file"):
        load(manifest_of(tmp_path))


def test_pickled_weights_are_read_where_the_settings_allow_it(tmp_path: Path, checkpoint: Path) -> None:
    pickled(checkpoint)
    assert load(manifest_of(tmp_path), allow_pickle=True).unet is not None


def test_a_pickled_single_file_is_read_where_the_settings_allow_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    manifest = single_file(
        tmp_path, load(manifest_of(tmp_path, source={"folder": str(img2img_checkpoint())}))
    )
    file = manifest.source.file  # type: ignore[union-attr]
    torch.save({"state_dict": load_file(file)}, file.with_suffix(".ckpt"))
    source = manifest.source.model_copy(update={"file": file.with_suffix(".ckpt")})
    manifest = manifest.model_copy(update={"source": source})
    with pytest.raises(ModelUnusable, match=r"not a \.safetensors file.*AVATARFORGE_DIFFUSION_ALLOW_PICKLE"):
        load(manifest)
    assert load(manifest, allow_pickle=True).unet is not None


# --- code --------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from diffusers import StableDiffusionImg2ImgPipeline

Path(__file__).with_name("it_ran").touch()

class Brought(StableDiffusionImg2ImgPipeline):
    pass
"""


def brings_code(checkpoint: Path) -> None:
    (checkpoint / "brought.py").write_text(CODE)
    name_in_index(checkpoint, _class_name=["brought", "Brought"])


def test_code_that_a_checkpoint_brings_is_not_run(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    brings_code(checkpoint)
    with pytest.raises(ModelUnusable, match="AVATARFORGE_DIFFUSION_ALLOW_REMOTE_CODE"):
        load(manifest_of(tmp_path, source={"folder": "checkpoint", "pipeline": "DiffusionPipeline"}))
    assert list(tmp_path.rglob("it_ran")) == []


def test_it_is_run_where_the_settings_allow_it(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    brings_code(checkpoint)
    manifest = manifest_of(tmp_path, source={"folder": "checkpoint", "pipeline": "DiffusionPipeline"})
    assert type(load(manifest, allow_remote_code=True)).__name__ == "Brought"


# --- the safety checker ------------------------------------------------------------------------------------


def test_a_safety_checker_is_loaded_where_the_checkpoint_has_one(tmp_path: Path, checkpoint: Path) -> None:
    add_safety_checker(checkpoint)
    assert load(manifest_of(tmp_path)).safety_checker is not None
    assert load(manifest_of(tmp_path, safety_checker=True)).safety_checker is not None


def test_a_manifest_can_do_without_the_safety_checker(tmp_path: Path, checkpoint: Path) -> None:
    add_safety_checker(checkpoint)
    shutil.rmtree(checkpoint / "safety_checker")
    assert load(manifest_of(tmp_path, safety_checker=False)).safety_checker is None


@pytest.mark.parametrize("source", ["folder", "file"])
def test_a_manifest_that_asks_for_a_safety_checker_refuses_a_checkpoint_without(
    tmp_path: Path, checkpoint: Path, source: str
) -> None:
    manifest = manifest_of(tmp_path, safety_checker=True)
    if source == "file":
        whole = single_file(tmp_path, load(manifest_of(tmp_path)))
        manifest = whole.model_copy(update={"safety_checker": True})
    with pytest.raises(ModelUnusable, match="asks for a safety checker, but the checkpoint has none"):
        load(manifest)


def test_a_checkpoint_without_one_is_loaded_without(tmp_path: Path, checkpoint: Path) -> None:
    assert load(manifest_of(tmp_path)).safety_checker is None
    assert load(manifest_of(tmp_path, safety_checker=False)).safety_checker is None


# --- the kind ----------------------------------------------------------------------------------------------


def test_a_checkpoint_whose_text_encoder_has_no_width_of_its_own_has_a_kind() -> None:
    from transformers import CLIPConfig

    encoder = SimpleNamespace(config=CLIPConfig())
    pipeline = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace()), text_encoder=encoder)
    assert pipelines.describe_kind(pipeline) == "SimpleNamespace"


# --- weights that come and go -------------------------------------------------------------------------------


class Placed:
    """A pipeline that notes where it was put."""

    def __init__(self) -> None:
        self.placed: list[str] = []

    def to(self, device: str) -> None:
        self.placed.append(f"on {device}")

    def enable_model_cpu_offload(self, device: str) -> None:
        self.placed.append(f"parts to {device}")

    def enable_sequential_cpu_offload(self, device: str) -> None:
        self.placed.append(f"layers to {device}")


@pytest.mark.parametrize(
    ("offload", "device", "placed"),
    [
        ("none", "cuda", "on cuda"),
        ("model", "cuda", "parts to cuda"),
        ("sequential", "cuda", "layers to cuda"),
        # Without a GPU there is nothing to keep them away from.
        ("model", "cpu", "on cpu"),
    ],
)
def test_the_manifest_says_where_the_weights_lie(
    tmp_path: Path, checkpoint: Path, offload: str, device: str, placed: str
) -> None:
    pipeline = Placed()
    pipelines.move_to_device(pipeline, manifest_of(tmp_path, offload=offload), device)
    assert pipeline.placed == [placed]


# --- engines -----------------------------------------------------------------------------------------------


def test_weighted_prompts_need_an_engine_that_reads_them(tmp_path: Path) -> None:
    class Other(type(img2img())):  # type: ignore[misc]  # the class is diffusers', known when it runs
        def __call__(self, prompt: str, image: Any) -> None:
            """Unknown from inside."""

    other = Other(**img2img().components, requires_safety_checker=False)
    manifest = manifest_of(tmp_path, prompt_weights="automatic1111")
    with pytest.raises(
        ModelUnusable, match="has prompt_weights, which a model has not that makes images singly"
    ):
        _create_engine(other, manifest, DiffusionSettings(), "cpu")


def test_weighted_prompts_need_a_tokenizer_that_tells_the_places_of_tokens(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    parts = img2img().components | {"tokenizer": CanineTokenizer(model_max_length=77)}
    slow = type(img2img())(**parts, requires_safety_checker=False)
    manifest = manifest_of(tmp_path, prompt_weights="compel")
    with pytest.raises(ModelUnusable, match="has prompt_weights, which need a tokenizer that tells where"):
        _create_engine(slow, manifest, DiffusionSettings(), "cpu")
