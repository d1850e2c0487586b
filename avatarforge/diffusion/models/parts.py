"""Loads the parts of a checkpoint, each of whose weights must be there, fit and be finite.

diffusers and transformers fill what a file lacks with random numbers, and pass over what they have no place
for: such a model makes images too, but on each replica others.
"""

import importlib
import json
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from avatarforge.diffusion.models.weight_files import (
    UnreadableWeights,
    describe_contents,
    find_wrapper,
    read_header,
    unwrap_key,
)
from avatarforge.domain.errors import ModelUnusable

if TYPE_CHECKING:
    import torch

_MAX_KEYS_NAMED: Final = 2
_HARMLESS: Final = re.compile(r"(^|\.)position_ids$")
"""Tensors that older versions of transformers saved, and newer ones compute."""


def load_part(
    model: str,
    folder: Path,
    library: str,
    kind: str,
    dtype: "torch.dtype",
    *,
    name: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> Any:
    """Load one part in diffusers' layout from its folder; `None` if its class has no weights.

    `name` is the part's, if the folder has another.

    Raises `ModelUnusable`, which names the part and the tensors that are missing, surplus, of another shape
    or not finite.
    """
    import torch

    loading: Any = importlib.import_module("diffusers.pipelines.pipeline_loading_utils")
    found = loading.simple_get_class_obj(library, kind)
    if not issubclass(found, torch.nn.Module):
        return None
    name = name or folder.name
    files = _list_weight_files(folder, allow_pickle)
    variant = _pick_variant(files, variant)
    files = [file for file in files if file.suffix == ".safetensors" and _read_variant(file) == variant]
    shapes = _read_shapes(model, name, files)
    with TemporaryDirectory(prefix="avatarforge-") as temporary:
        source = folder
        if find_wrapper(shapes):
            source = _write_unwrapped(folder, files, Path(temporary) / folder.name)
        part, report = found.from_pretrained(
            str(source),
            dtype=dtype,
            variant=variant,
            local_files_only=True,
            use_safetensors=None if allow_pickle else True,
            # What does not fit is reported, where it would be raised without a name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    try:
        check_keys(
            missing=report["missing_keys"],
            surplus=report["unexpected_keys"],
            mismatched=report["mismatched_keys"],
        )
    except ValueError as error:
        contents = describe_contents(shapes)
        raise ModelUnusable(model, f"its part {name!r} {error}{_add_contents(contents)}") from None
    return part


def check_keys(
    *, missing: Iterable[str], surplus: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]
) -> None:
    """Raise `ValueError`, with a part of a sentence, if a tensor is missing, surplus or of another shape."""
    if wrong := sorted(mismatched):
        key, found, needed = wrong[0]
        raise ValueError(f"has {key} of the shape {tuple(found)}, where its config needs {tuple(needed)}")
    if absent := sorted(missing):
        raise ValueError(f"lacks {list_keys(absent)}")
    if left := sorted(key for key in surplus if not _HARMLESS.search(key)):
        raise ValueError(f"holds {list_keys(left)}, for which it has no place")


def check_finite(model: str, parts: Mapping[str, Any]) -> None:
    """Raise `ModelUnusable` if a weight of one of these modules is infinite or no number."""
    import torch

    for name, part in parts.items():
        if not isinstance(part, torch.nn.Module):
            continue
        for key, tensor in part.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ModelUnusable(model, f"its part {name!r} holds values that are not finite in {key}")


def list_keys(keys: Sequence[str]) -> str:
    """Name the first keys, and count the others."""
    named = " and ".join(keys[:_MAX_KEYS_NAMED])
    return (
        named if len(keys) <= _MAX_KEYS_NAMED else f"{named} and {len(keys) - _MAX_KEYS_NAMED} more tensors"
    )


def _add_contents(contents: str | None) -> str:
    return "" if contents is None else f": the file is {contents}"


def _list_weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """List the files that diffusers and transformers choose among: pickled ones where there are no others."""
    return sorted(folder.glob("*.safetensors")) or (sorted(folder.glob("*.bin")) if allow_pickle else [])


def _pick_variant(files: Sequence[Path], wanted: str | None) -> str | None:
    """Return the wanted variant, such as `fp16`, if there are weights of it: some parts may have none.

    If none is wanted, return the only one that there is.
    """
    variants = {_read_variant(file) for file in files}
    if wanted is None and len(variants) == 1:
        return variants.pop()
    return wanted if wanted in variants else None


def _read_variant(file: Path) -> str | None:
    name = re.sub(r"-\d+-of-\d+", "", file.name)
    return name.split(".")[1] if name.count(".") > 1 else None


def _read_shapes(model: str, part: str, files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            shapes.update(read_header(file).shapes)
        except UnreadableWeights as error:
            raise ModelUnusable(model, f"its part {part!r} cannot be read: {file.name} {error}") from error
    return shapes


def _write_unwrapped(folder: Path, files: Sequence[Path], target: Path) -> Path:
    """Copy the part with its tensors' true names: only headers, and the index of several files, change."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    for file in files:
        with file.open("rb") as old, (target / file.name).open("wb") as new:
            entries = json.loads(old.read(*struct.unpack("<Q", old.read(8))))
            header = json.dumps({unwrap_key(key): entry for key, entry in entries.items()}).encode()
            new.write(struct.pack("<Q", len(header)) + header)
            shutil.copyfileobj(old, new)
    for index in target.glob("*.index*.json"):
        values = json.loads(index.read_text(encoding="utf-8"))
        values["weight_map"] = {unwrap_key(key): name for key, name in values["weight_map"].items()}
        index.write_text(json.dumps(values), encoding="utf-8")
    return target
