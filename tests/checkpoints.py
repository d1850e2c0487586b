"""Checkpoints for tests: the carried one, and tiny ones of random weights."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from avatarforge.diffusion.models import pipelines
from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.diffusion.models.loader import LoadedModel, ModelLoader
from avatarforge.package_data import package_data
from tests.factories import a_manifest

CARRIED = package_data("models") / "avatar-mini" / "checkpoint"


def load(manifest: Manifest) -> Any:
    """The manifest's pipeline on the CPU, in one thread."""
    pipelines.import_libraries(threads=1)
    return pipelines.load(manifest, "cpu", pipelines.pick_dtype("auto", manifest, "cpu"))


async def loaded(loader: ModelLoader, name: str) -> LoadedModel:
    """The model of this name as a replica loads it."""
    return await loader.load(await loader.read_manifest(name))


@cache
def avatar_mini() -> Any:
    return load(Catalogue().read("avatar-mini"))


def save_tiny(family: str, folder: Path) -> None:
    from tests.families import tiny

    tiny(family).save_pretrained(folder)


def make_folder(prefix: str) -> Path:
    """A folder for as long as the tests run."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def name_in_index(checkpoint: Path, **entries: Any) -> None:
    """Change entries of the checkpoint's index."""
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


def add_safety_checker(checkpoint: Path) -> None:
    """Give the checkpoint a safety checker, of its true architecture and a tiny size."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(checkpoint / "safety_checker")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(checkpoint / "feature_extractor")
    name_in_index(
        checkpoint,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )


@cache
def img2img_checkpoint() -> Path:
    """A folder with an image-to-image checkpoint of random weights, the same in every run."""
    folder = make_folder("img2img-")
    save_tiny("img2img", folder)
    return folder


@cache
def tiny_models() -> Path:
    """A folder of models for services whose avatars need no likeness: `avatar-mini` with the carried manifest
    but for smaller images, and a tiny checkpoint of the same kind, the same in every run."""
    folder = make_folder("models-")
    model = folder / CARRIED.parent.name
    save_tiny("edit-mini", model / CARRIED.name)
    values = yaml.safe_load((CARRIED.parent / "manifest.yaml").read_text())
    del values["sha256"]
    (model / "manifest.yaml").write_text(yaml.safe_dump(values | {"size": 64}))
    return folder


def img2img_manifest() -> Manifest:
    source = {"folder": img2img_checkpoint(), "pipeline": "StableDiffusionImg2ImgPipeline"}
    return a_manifest(name="img2img", source=source)


@cache
def img2img() -> Any:
    return load(img2img_manifest())


def write_manifest(models: Path, name: str, /, **source: str) -> Path:
    """A plain manifest of this source in the folder `models`."""
    values: dict[str, Any] = {
        "name": name,
        "title": name,
        "family": "stable-diffusion",
        "licence": "none",
        "size": 128,
    }
    # Loading makes an image with them.
    values |= {"defaults": {"steps": 2, "strength": 1.0}}
    path = models / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | {"source": source}))
    return path
