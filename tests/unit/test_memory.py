"""Whether memory holds one more model, by the heads of its files."""

from pathlib import Path

import pytest

from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.diffusion.memory import WORKING_BYTES, bytes_in_memory, bytes_of_weights, holds_one_more
from tests.checkpoints import CHECKPOINT

FILES = sorted(CHECKPOINT.rglob("*.safetensors"))
GIB = 1 << 30


def test_weights_are_counted_as_numbers_of_the_wanted_size() -> None:
    from safetensors.numpy import load_file

    numbers = sum(array.size for file in FILES for array in load_file(file).values())
    assert [bytes_of_weights(FILES, size) for size in (2, 4)] == [2 * numbers, 4 * numbers]


def test_of_other_files_the_size_counts(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 1000)
    assert bytes_of_weights([tmp_path / "model.bin"], 4) == 1000


def test_of_a_model_whose_parts_come_and_go_the_largest_counts() -> None:
    manifest = Catalogue().manifest("avatar-mini")
    unet = bytes_of_weights([file for file in FILES if file.parent.name == "unet"], 2)
    needs = [
        bytes_in_memory(manifest.model_copy(update={"offload": offload}), 2)
        for offload in ("none", "model", "sequential")
    ]
    assert needs == [bytes_of_weights(FILES, 2), unet, 0]


def test_weights_that_are_not_here_yet_are_not_counted() -> None:
    assert bytes_in_memory(Catalogue().manifest("sdxl"), 2) == 0


@pytest.mark.parametrize(
    ("weights", "free", "holds"),
    [
        (2 * GIB, 2 * GIB + WORKING_BYTES, True),
        (2 * GIB, 2 * GIB + WORKING_BYTES - 1, False),
        # Large models need more besides.
        (20 * GIB, 22 * GIB, False),
        (20 * GIB, 25 * GIB, True),
    ],
)
def test_pictures_need_room_besides(weights: int, free: int, holds: bool) -> None:
    assert holds_one_more(weights, free) is holds
