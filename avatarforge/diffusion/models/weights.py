"""A model's weights: where they are, whether they are complete, and how much memory they take.

Imports no torch.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

from avatarforge.diffusion.models.catalogue import FileSource, FolderSource, HubAddress, HubSource, Manifest
from avatarforge.package_data import package_data

INDEX = "model_index.json"
OVERHEAD_SHARE: Final = 0.25
"""Memory that its images and the libraries take besides, as a share of a model's weights."""
MIN_OVERHEAD_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights on this machine, before anything is loaded."""

    kind: Literal["carried", "folder", "file", "hub"]
    place: str
    """A path, or for the hub `owner/name@revision`."""
    size: int
    """Bytes of weights on this machine."""
    missing: str | None
    """The first missing thing, as a part of a sentence; `None` if the weights are complete."""


def find_weights(manifest: Manifest) -> Weights:
    """Look the model's weights up on this machine."""
    match manifest.source:
        case FolderSource(folder=folder):
            kind: Literal["carried", "folder"] = (
                "carried" if folder.is_relative_to(package_data("models").resolve()) else "folder"
            )
            missing = find_missing_part(folder, manifest)
            return Weights(kind=kind, place=str(folder), size=_sum_sizes(folder), missing=missing)
        case FileSource(file=file, config=config):
            return Weights(
                kind="file",
                place=str(file),
                size=file.stat().st_size if file.is_file() else 0,
                missing=next(
                    (
                        f"{path} is not there"
                        for path in (file, *([] if config is None else [config / INDEX]))
                        if not path.is_file()
                    ),
                    None,
                ),
            )
        case HubSource(hub=hub):
            snapshot = find_snapshot(hub)
            return Weights(
                kind="hub",
                place=f"{hub.repository}@{hub.revision}",
                size=0 if snapshot is None else _sum_sizes(snapshot),
                missing="not cached" if snapshot is None else find_missing_part(snapshot, manifest),
            )


def find_snapshot(hub: HubAddress) -> Path | None:
    """Return the revision's folder in the hub's cache, complete or not; asks no server."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub.repository, INDEX, revision=hub.revision)
    return Path(index).parent if isinstance(index, str) else None


def list_files_by_part(manifest: Manifest) -> dict[str, list[Path]]:
    """List the weight files that loading reads, by the checkpoint's parts, as far as they are here."""
    match manifest.source:
        case FileSource(file=file):
            return {"": [file]} if file.is_file() else {}
        case FolderSource(folder=folder):
            return _list_files(folder, "")
        case HubSource(hub=hub):
            snapshot = find_snapshot(hub)
            # Sets of weights in several formats lie beside each other.
            infix = "" if hub.variant is None else f".{hub.variant}."
            return {} if snapshot is None else _list_files(snapshot, infix)


def _list_files(folder: Path, infix: str) -> dict[str, list[Path]]:
    if not (folder / INDEX).is_file():
        return {}
    found = {name: _list_weight_files(folder / name) for name in read_parts(folder)}
    return {
        name: [file for file in files if infix in file.name] or files
        for name, files in found.items()
        if files
    }


def read_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Return library and class of the checkpoint's parts by name, from its index."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[1]
    }


def find_missing_part(folder: Path, manifest: Manifest, *, allow_pickle: bool = False) -> str | None:
    """Return the first thing that the folder's index names and that is missing, as a part of a sentence."""
    if not (folder / INDEX).is_file():
        return f"{folder / INDEX} is not there"
    try:
        parts = read_parts(folder)
    except (OSError, ValueError) as error:
        return f"{folder / INDEX} cannot be read ({error})"
    for name in parts:
        part = folder / name
        if name == "safety_checker" and manifest.safety_checker is False:
            continue
        if name == "vae" and manifest.vae is not None:
            continue
        if not part.is_dir():
            return (
                f"its part {name!r} is not there: {INDEX} names it, but {folder} has no folder of this name"
            )
        # Parts with weights, and no others, have this file.
        if (part / "config.json").is_file() and not _list_weight_files(part, allow_pickle=allow_pickle):
            return f"its part {name!r} has no .safetensors file in {part}"
    return None


def _list_weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    suffixes = {".safetensors", ".bin"} if allow_pickle else {".safetensors"}
    # A link into the hub's cache may lead nowhere.
    return [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]


def _sum_sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _list_weight_files(folder, allow_pickle=True))


def estimate_gpu_bytes(manifest: Manifest, itemsize: int) -> int:
    """Return the bytes that the model's weights take on a GPU, as numbers of `itemsize` bytes each.

    With offloading of whole parts only the largest counts, and with offloading of layers nothing; nor does
    what has not been fetched yet.
    """
    parts = [count_weight_bytes(files, itemsize) for files in list_files_by_part(manifest).values()]
    match manifest.offload:
        case "none":
            return sum(parts)
        case "model":
            return max(parts, default=0)
        case "sequential":
            return 0


def count_weight_bytes(files: Iterable[Path], itemsize: int) -> int:
    """Return the bytes that the files' weights take as numbers of `itemsize` bytes each.

    A `.safetensors` file's header says how many numbers it holds; of another file its size counts.
    """
    return sum(_count_file_bytes(file, itemsize) for file in files)


def fits_in_memory(weights: int, free: int) -> bool:
    """Return whether a model with so many bytes of weights can be loaded and warmed up in `free` bytes."""
    return weights + max(MIN_OVERHEAD_BYTES, int(weights * OVERHEAD_SHARE)) <= free


def _count_file_bytes(file: Path, itemsize: int) -> int:
    if file.suffix != ".safetensors":
        return file.stat().st_size
    with file.open("rb") as opened:
        # https://github.com/huggingface/safetensors#format: eight bytes of length, then a JSON object.
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    numbers: int = sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return numbers * itemsize
