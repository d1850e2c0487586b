"""Draws the training portraits once and keeps them on disk as one array of pixels and one list of what they
show."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from portraits import Portrait, draw, sample

_CHUNK = 200
"""Portraits drawn by one task; each chunk has its own seed, so the number of processes does not matter."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Portraits drawn from one seed: pixels (N, S, S, 3) as bytes, and what each shows."""

    pixels: npt.NDArray[np.uint8]
    portraits: Sequence[Portrait]

    def batch(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """The pictures with these indices, (B, 3, S, S), -1 to 1."""
        return as_tensor(self.pixels[indices])


def as_tensor(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (B, H, W, 3) in bytes as the autoencoder wants them: (B, 3, H, W), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn(folder: Path, *, count: int, size: int, seed: int, processes: int) -> Dataset:
    """The first `count` portraits of the dataset in `folder`; it is drawn if it is not there yet."""
    pixels_file, portraits_file = folder / "pictures.npy", folder / "portraits.json"
    if not portraits_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw_all(
            pixels_file, portraits_file, chunks=-(-count // _CHUNK), size=size, seed=seed, processes=processes
        )
    listed = json.loads(portraits_file.read_text())
    portraits = [Portrait(**entry) for entry in listed[:count]]
    return Dataset(pixels=np.load(pixels_file, mmap_mode="r")[:count], portraits=portraits)


def _draw_all(
    pixels_file: Path, portraits_file: Path, *, chunks: int, size: int, seed: int, processes: int
) -> None:
    shape = (chunks * _CHUNK, size, size, 3)
    pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
    listed: list[dict[str, Any]] = []
    with Pool(processes) as pool:
        tasks = [(seed, number, size) for number in range(chunks)]
        for number, (drawings, portraits) in enumerate(pool.imap(_chunk, tasks)):
            pixels[number * _CHUNK : (number + 1) * _CHUNK] = drawings
            listed += [vars(portrait) for portrait in portraits]
    pixels.flush()
    portraits_file.write_text(json.dumps(listed))


def _chunk(task: tuple[int, int, int]) -> tuple[npt.NDArray[np.uint8], list[Portrait]]:
    seed, number, size = task
    rng = np.random.default_rng((seed, number))
    portraits = [sample(rng) for _ in range(_CHUNK)]
    return np.stack([draw(portrait, rng, size) for portrait in portraits]), portraits
