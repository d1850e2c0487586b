"""Where a model's weights lie, and whether all that the checkpoint names is there. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avatarforge.carried import carried
from avatarforge.diffusion.catalogue import FileSource, FolderSource, HubAddress, HubSource, Manifest

INDEX = "model_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights as they are found on this machine, before anything is loaded."""

    kind: Literal["carried", "folder", "file", "hub"]
    place: str
    """A path, or for the hub `owner/name@revision`."""
    size: int
    """Bytes of weights on this machine."""
    missing: str | None
    """What is not there, as a part of a sentence; `None` when nothing is missing."""


def weights_of(manifest: Manifest) -> Weights:
    match manifest.source:
        case FolderSource(folder=folder):
            kind: Literal["carried", "folder"] = (
                "carried" if folder.is_relative_to(carried("models").resolve()) else "folder"
            )
            missing = missing_part(folder, manifest)
            return Weights(kind=kind, place=str(folder), size=_size(folder), missing=missing)
        case FileSource(file=file, config=config):
            return Weights(
                kind="file",
                place=str(file),
                size=file.stat().st_size if file.is_file() else 0,
                missing=next(
                    (f"{path} is not there" for path in (file, config / INDEX) if not path.is_file()), None
                ),
            )
        case HubSource(hub=hub):
            snapshot = cached(hub)
            return Weights(
                kind="hub",
                place=f"{hub.repository}@{hub.revision}",
                size=0 if snapshot is None else _size(snapshot),
                missing="not cached" if snapshot is None else missing_part(snapshot, manifest),
            )


def cached(hub: HubAddress) -> Path | None:
    """The folder in the hub's cache with what was fetched of this revision, whole or not; asks no server."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub.repository, INDEX, revision=hub.revision)
    return Path(index).parent if isinstance(index, str) else None


def files_by_part(manifest: Manifest) -> dict[str, list[Path]]:
    """The files with weights that loading reads, by the checkpoint's parts, as far as they are here."""
    match manifest.source:
        case FileSource(file=file):
            return {"": [file]} if file.is_file() else {}
        case FolderSource(folder=folder):
            return _files_by_part(folder, "")
        case HubSource(hub=hub):
            snapshot = cached(hub)
            # Sets of weights in several formats lie beside each other.
            mark = "" if hub.variant is None else f".{hub.variant}."
            return {} if snapshot is None else _files_by_part(snapshot, mark)


def _files_by_part(folder: Path, mark: str) -> dict[str, list[Path]]:
    if not (folder / INDEX).is_file():
        return {}
    found = {name: _weights(folder / name) for name in parts_of(folder)}
    return {
        name: [file for file in files if mark in file.name] or files for name, files in found.items() if files
    }


def parts_of(folder: Path) -> dict[str, str]:
    """The checkpoint's parts by name, each with its class, as its index tells them."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return {
        name: entry[1]
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[1]
    }


def missing_part(folder: Path, manifest: Manifest, *, allow_pickle: bool = False) -> str | None:
    """The first thing that the folder's index names and that is not there, as a part of a sentence."""
    if not (folder / INDEX).is_file():
        return f"{folder / INDEX} is not there"
    try:
        parts = parts_of(folder)
    except (OSError, ValueError) as error:
        return f"{folder / INDEX} cannot be read ({error})"
    for name in parts:
        part = folder / name
        if name == "safety_checker" and manifest.safety_checker is False:
            continue
        if not part.is_dir():
            return (
                f"its part {name!r} is not there: {INDEX} names it, but {folder} has no folder of this name"
            )
        # Parts with weights, and no others, have this file.
        if (part / "config.json").is_file() and not _weights(part, allow_pickle=allow_pickle):
            return f"its part {name!r} has no .safetensors file in {part}"
    return None


def _weights(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    suffixes = {".safetensors", ".bin"} if allow_pickle else {".safetensors"}
    # A link into the hub's cache may lead nowhere.
    return [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _weights(folder, allow_pickle=True))
