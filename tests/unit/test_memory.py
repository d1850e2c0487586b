"""Whether memory holds one more model, by the heads of its files."""

from pathlib import Path

import pytest

from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.diffusion.models.weights import (
    MIN_OVERHEAD_BYTES,
    count_weight_bytes,
    estimate_gpu_bytes,
    fits_in_memory,
)
from tests.checkpoints import CARRIED

FILES = sorted(CARRIED.rglob("*.safetensors"))
GIB = 1 << 30


def test_weights_are_counted_as_numbers_of_the_wanted_size() -> None:
    from safetensors.numpy import load_file

    numbers = sum(array.size for file in FILES for array in load_file(file).values())
    assert [count_weight_bytes(FILES, size) for size in (2, 4)] == [2 * numbers, 4 * numbers]


def test_of_other_files_the_size_counts(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 1000)
    assert count_weight_bytes([tmp_path / "model.bin"], 4) == 1000


def test_of_a_model_whose_parts_come_and_go_the_largest_counts() -> None:
    manifest = Catalogue().read("avatar-mini")
    unet = count_weight_bytes([file for file in FILES if file.parent.name == "unet"], 2)
    needs = [
        estimate_gpu_bytes(manifest.model_copy(update={"offload": offload}), 2)
        for offload in ("none", "model", "sequential")
    ]
    assert needs == [count_weight_bytes(FILES, 2), unet, 0]


def test_weights_that_are_not_here_yet_are_not_counted() -> None:
    assert estimate_gpu_bytes(Catalogue().read("sdxl"), 2) == 0


@pytest.mark.parametrize(
    ("weights", "free", "holds"),
    [
        (2 * GIB, 2 * GIB + MIN_OVERHEAD_BYTES, True),
        (2 * GIB, 2 * GIB + MIN_OVERHEAD_BYTES - 1, False),
        # Large models need more besides.
        (20 * GIB, 22 * GIB, False),
        (20 * GIB, 25 * GIB, True),
    ],
)
def test_pictures_need_room_besides(weights: int, free: int, holds: bool) -> None:
    assert fits_in_memory(weights, free) is holds
