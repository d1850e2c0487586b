"""Checkpoints for tests: the carried one, and tiny ones of random weights."""

import atexit
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
    values = {"name": name, "title": name, "family": "stable-diffusion", "licence": "none", "size": 128}
    path = models / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | {"source": source}))
    return path
