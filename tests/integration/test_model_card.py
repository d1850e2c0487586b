"""The example of the carried checkpoint's model card, with diffusers alone."""

from pathlib import Path

import pytest
from PIL import Image

from avatarforge.cli.photos import SAMPLE
from tests.documents import blocks_of

TREE = Path(__file__).parents[2]
CARD = "models/avatar-mini/README.md"


def test_the_example_makes_an_avatar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE)
    [example] = [block for block in blocks_of(TREE / CARD, CARD) if block.language == "python"]
    with Image.open(SAMPLE) as sample:
        names = {"photo": sample.convert("RGB").resize((256, 256))}
    exec(example.code, names)
    avatar = names["avatar"]
    assert avatar.size == (256, 256)
    assert len(avatar.getcolors(256 * 256)) > 1000, "a picture, not a surface"
