"""Photos as people have them, in tests/photos/: taken, in the colours that Chromium shows, without a mark.

Photos (`COLOURS` and what follows) show the sample portrait. HEIC's variants (`CHARTS`) show a chart of 24
colours, at the places that heif-convert has them, and Display P3 as littlecms converts it.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatarforge.domain.errors import UnsupportedPhoto
from avatarforge.imaging.crop import find_square
from avatarforge.imaging.decode import load_upright
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings

FOLDER = Path(__file__).parents[1] / "photos"
COLOURS = {
    (0.25, 0.25): (194, 150, 130),
    (0.75, 0.25): (133, 128, 177),
    (0.25, 0.75): (30, 30, 120),
    (0.75, 0.75): (255, 224, 189),
}
GREYS = {
    (0.25, 0.25): (160,) * 3,
    (0.75, 0.25): (133,) * 3,
    (0.25, 0.75): (43,) * 3,
    (0.75, 0.75): (229,) * 3,
}
AVIF = {
    (0.25, 0.25): (171, 163, 124),
    (0.75, 0.25): (149, 120, 174),
    (0.25, 0.75): (32, 33, 100),
    (0.75, 0.75): (249, 225, 199),
}
# Its orientation is a LONG, which Chromium passes over: the same picture on its side.
TURNED = {
    (0.25, 0.25): (135, 128, 179),
    (0.75, 0.25): (254, 224, 186),
    (0.25, 0.75): (196, 149, 133),
    (0.75, 0.75): (27, 31, 120),
}
CHARTS = {
    # Ten bits a channel, turned by `irot`.
    "turned-10-bit.heic": {(0.4, 0.4): (87, 108, 67), (0.9, 0.1): (90, 60, 120), (0.1, 0.9): (201, 60, 49)},
    # Turned by `irot` and mirrored by `imir`; Display P3 by the codes of an `nclx`.
    "mirrored-p3.heic": {(0.6, 0.75): (203, 148, 128), (0.9, 0.1): (0, 173, 193), (0.1, 0.9): (255, 111, 0)},
    # Display P3 by a profile, with an `nclx` beside it.
    "p3-icc.heic": {(0.4, 0.4): (92, 123, 161), (0.9, 0.1): (0, 173, 193), (0.6, 0.75): (0, 123, 54)},
    # A grid of four tiles, with a depth map, a gain map, a thumbnail, XMP, and EXIF that does not turn it.
    "grid-depth.heic": {(0.9, 0.1): (219, 41, 39), (0.1, 0.9): (95, 58, 124), (0.6, 0.75): (136, 127, 182)},
}


def cleaned(name: str) -> bytes:
    with (FOLDER / name).open("rb") as file:
        return clean_photo(file, name, UploadSettings()).content.read()


@pytest.mark.parametrize(
    ("name", "colours"),
    [
        ("iphone.heic", COLOURS),
        ("a.avif", AVIF),
        ("ztxt-1.2mb.png", COLOURS),
        ("badcrctext.png", COLOURS),
        ("noeoi.jpg", COLOURS),
        ("entropy.jpg", COLOURS),
        ("monitor.png", COLOURS),
        ("grayalphag18.png", GREYS),
        ("gama1.png", COLOURS),
        ("o6longMM.jpg", TURNED),
        *CHARTS.items(),
    ],
)
def test_it_is_taken_in_the_colours_that_viewers_show(
    name: str, colours: dict[tuple[float, float], tuple[int, ...]]
) -> None:
    stored = cleaned(name)
    photo = load_upright(stored)
    found = [photo.getpixel((round(x * photo.width), round(y * photo.height))) for x, y in colours]
    assert np.abs(np.array(found) - np.array(list(colours.values()))).max() <= 8, found
    for mark in (b"SECRET", b"mmod", b"zTXt", b"tEXt", b"iCCP", b"Exif"):
        assert mark not in stored


def test_a_jpeg_of_twelve_bits_is_named() -> None:
    with pytest.raises(UnsupportedPhoto, match="12-bit JPEG is not supported"):
        cleaned("12bit.jpg")


def test_a_jpeg_without_its_end_marker_comes_out_whole() -> None:
    whole = (FOLDER / "noeoi.jpg").read_bytes() + b"\xff\xd9"
    with Image.open(BytesIO(whole)) as before, Image.open(BytesIO(cleaned("noeoi.jpg"))) as after:
        difference = np.asarray(before).astype(int) - np.asarray(after)
    assert np.abs(difference).max() <= 8


def test_the_square_holds_a_small_face_at_the_edge() -> None:
    square = find_square(load_upright(cleaned("face-edge-left.jpg")))
    assert square.left <= 43 < 129 <= square.left + square.side
    assert square.top <= 344 < 430 <= square.top + square.side
