"""Each tensor of each part of a checkpoint removed, renamed, cut or not finite, in turn.

A sample by default, every one in `make chaos`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avatarforge.diffusion.models.parts import check_finite, load_part
from avatarforge.diffusion.models.single_files import load_parts_of_file
from avatarforge.diffusion.models.weights import read_parts
from avatarforge.domain.errors import ModelUnusable
from tests.chaos.conftest import IS_LONG
from tests.checkpoints import add_safety_checker, img2img, save_tiny
from tests.single_file import single_file

FAULTS = ("removed", "renamed", "cut", "not finite")
PARTS = {
    "unet": "sd-epsilon",
    "vae": "sd-epsilon",
    "text_encoder": "sd-epsilon",
    "text_encoder_2": "xl",
    "safety_checker": "sd-epsilon",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in set(PARTS.values()):
        save_tiny(family, folder / family)
    add_safety_checker(folder / "sd-epsilon")
    return folder


def spoil(tensors: dict[str, Any], key: str, fault: str) -> dict[str, Any]:
    """The tensors with one of them broken."""
    others = {name: tensor for name, tensor in tensors.items() if name != key}
    tensor = tensors[key]
    match fault:
        case "removed":
            return others
        case "renamed":
            return others | {f"{key}_": tensor}
        case "cut":
            return others | {key: tensor.flatten()[1:].clone()}
    broken = tensor.clone()
    broken.view(-1)[-1] = float("nan")
    return others | {key: broken}


def list_faults(keys: list[str], sample: int) -> Iterator[tuple[str, str]]:
    """Every fault of every tensor; or so many, spread over tensors and faults."""
    if IS_LONG:
        yield from ((key, fault) for key in keys for fault in FAULTS)
    else:
        yield from ((keys[i * len(keys) // sample], FAULTS[i % len(FAULTS)]) for i in range(sample))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_with_a_broken_tensor_is_refused_by_name(checkpoints: Path, tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = checkpoints / PARTS[name]
    library, kind = read_parts(source)[name]
    folder = Path(shutil.copytree(source / name, tmp_path / name))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)

    def load() -> None:
        part = load_part("m", folder, library, kind, torch.float32)
        check_finite("m", {name: part})

    load()
    for key, fault in list_faults(sorted(tensors), sample=4):
        save_file(spoil(tensors, key, fault), file, {"format": "pt"})
        with pytest.raises(ModelUnusable) as caught:
            load()
        assert name in str(caught.value), (key, fault)
        assert key in str(caught.value), (key, fault)
        assert len(str(caught.value)) <= 300, (key, fault)


def test_a_single_file_with_a_broken_tensor_is_refused_by_part(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source: Any = single_file(tmp_path, img2img()).source
    tensors = load_file(source.file)

    def load() -> None:
        parts = load_parts_of_file("m", source.file, source.config, torch.float32)
        check_finite("m", parts)

    load()
    for key, fault in list_faults(sorted(tensors), sample=4):
        save_file(spoil(tensors, key, fault), source.file)
        with pytest.raises(ModelUnusable, match=r"its part '(unet|vae|text_encoder)'") as caught:
            load()
        assert len(str(caught.value)) <= 300, (key, fault)
