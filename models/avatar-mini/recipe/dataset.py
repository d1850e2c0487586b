"""Pairs on disk, in shards that are written whole, and in memory as latents."""

from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pairs import STYLE_NAMES, TONE_NAMES, compose, render
from photos import Person, load_people
from torch import Tensor

SCENES_PER_SHARD: Final = 60
TARGETS_PER_SCENE: Final = 2
PHOTO: Final = STYLE_NAMES.index("photo")

_people: list[Person] = []


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Photos (N, H, W, 3), targets (N, TARGETS_PER_SCENE, H, W, 3), and what each target's prompt names."""

    photos: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.uint8]
    named: npt.NDArray[np.int64]
    """(N, TARGETS_PER_SCENE, 3): style, background and tone numbers; -1 for none."""


def write_shards(folder: Path, files: list[Path], *, count: int, seed: int, processes: int) -> None:
    """Make the shards 0..count that are not there yet.

    Raises:
        OSError: the disk is full; shards that were written stay, and no half of one is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not _file(folder, number).exists()]
    if not missing:
        return
    # Checked here first: a pool starts a process that ends as it begins again, without end.
    load_people(files)
    with get_context("spawn").Pool(min(processes, len(missing)), _begin, (files,)) as pool:
        for _ in pool.imap_unordered(_write, [(folder, seed, number) for number in missing]):
            pass


def read_shards(folder: Path) -> list[Path]:
    """The shards that there are, in order."""
    return sorted(folder.glob("shard-[0-9][0-9][0-9][0-9].npz"))


def read_shard(file: Path) -> Shard:
    """Read one shard."""
    with np.load(file) as arrays:
        return Shard(photos=arrays["photos"], targets=arrays["targets"], named=arrays["named"])


def as_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pictures (B, H, W, 3) in bytes as the autoencoder wants them: (B, 3, H, W), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:04}.npz"


def _begin(files: list[Path]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _people.extend(load_people(files))


def _write(task: tuple[Path, int, int]) -> None:
    folder, seed, number = task
    rng = np.random.default_rng((seed, number))
    photos, targets, named = [], [], []
    for _ in range(SCENES_PER_SHARD):
        scene = compose(rng, _people)
        photos.append(scene.photo.astype(np.uint8))
        # The photo itself is a target now and then: what an empty prompt gives.
        styles = rng.choice(PHOTO, TARGETS_PER_SCENE, replace=False)
        if scene.background < 0 and rng.random() < 0.08:
            styles[0] = PHOTO
        tones = [
            int(rng.integers(len(TONE_NAMES))) if style != PHOTO and rng.random() < 0.12 else -1
            for style in styles
        ]
        targets.append([render(scene, int(style), tone) for style, tone in zip(styles, tones, strict=True)])
        named.append(
            [(int(style), scene.background, tone) for style, tone in zip(styles, tones, strict=True)]
        )
    fresh = _file(folder, number).with_suffix(".new.npz")
    try:
        np.savez(fresh, photos=np.stack(photos), targets=np.array(targets), named=np.array(named, np.int64))
        fresh.replace(_file(folder, number))
    finally:
        fresh.unlink(missing_ok=True)
