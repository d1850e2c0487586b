"""The carried checkpoint, loaded once for all tests of a process, and manifests that name it."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from avatarforge.carried import carried
from avatarforge.diffusion import pipelines
from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.diffusion.loading import LoadedModel, ModelLoader

CHECKPOINT = carried("models") / "avatar-mini" / "checkpoint"


def load(manifest: Manifest) -> Any:
    """The manifest's pipeline on the CPU, in one thread."""
    pipelines.import_libraries(threads=1)
    return pipelines.load(manifest, "cpu", pipelines.pick_dtype("auto", manifest, "cpu"))


async def loaded(loader: ModelLoader, name: str) -> LoadedModel:
    """The model of this name as a replica loads it."""
    return await loader.load(await loader.manifest(name))


@cache
def avatar_mini() -> Any:
    return load(Catalogue().manifest("avatar-mini"))


def write_manifest(models: Path, name: str, /, **source: str) -> Path:
    """A plain manifest of this source in the folder `models`."""
    values = {"name": name, "title": name, "family": "stable-diffusion", "licence": "none", "size": 128}
    path = models / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | {"source": source}))
    return path
