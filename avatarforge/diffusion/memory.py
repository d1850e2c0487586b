"""Whether a device's memory holds one more model. Reads the heads of weights' files; imports no torch."""

import json
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Final

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.weights import files_by_part

WORKING_SHARE: Final = 0.25
"""Of a model's weights: what its pictures and the libraries take besides, at the least `WORKING_BYTES`."""
WORKING_BYTES: Final = 1 << 30


def bytes_in_memory(manifest: Manifest, itemsize: int) -> int:
    """Bytes of a GPU that the manifest's weights take as numbers of `itemsize` bytes each.

    Of a model whose parts come and go only the largest counts, and of one whose layers do, nothing; nor does
    what has not been fetched yet.
    """
    parts = [bytes_of_weights(files, itemsize) for files in files_by_part(manifest).values()]
    match manifest.offload:
        case "none":
            return sum(parts)
        case "model":
            return max(parts, default=0)
        case "sequential":
            return 0


def bytes_of_weights(files: Iterable[Path], itemsize: int) -> int:
    """Bytes that the files' weights take as numbers of `itemsize` bytes each.

    The head of a `.safetensors` file tells how many numbers it holds; of another file its size counts.
    """
    return sum(_bytes_of(file, itemsize) for file in files)


def holds_one_more(weights: int, free: int) -> bool:
    """Whether a model with so many bytes of weights can be loaded and warmed up in `free` bytes."""
    return weights + max(WORKING_BYTES, int(weights * WORKING_SHARE)) <= free


def _bytes_of(file: Path, itemsize: int) -> int:
    if file.suffix != ".safetensors":
        return file.stat().st_size
    with file.open("rb") as opened:
        # https://github.com/huggingface/safetensors#format: eight bytes of length, then a JSON object.
        (length,) = struct.unpack("<Q", opened.read(8))
        head = json.loads(opened.read(length))
    numbers: int = sum(prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__")
    return numbers * itemsize
