from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from avatarforge.diffusion.squares import square
from avatarforge.domain.jobs import Crop


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """512 x 512; the face's box is about (177, 66) to (272, 161)."""
    data = files("avatarforge").joinpath("samples/portrait.png").read_bytes()
    return Image.open(BytesIO(data)).convert("RGB")


def landscape(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), (120, 170, 220))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, height * 0.6, width, height), fill=(60, 120, 50))
    draw.ellipse((width * 0.8, 5, width * 0.8 + height / 8, 5 + height / 8), fill=(250, 240, 180))
    return picture


def skin_share(picture: Image.Image) -> float:
    """How much of the middle of a portrait, where the face belongs, has the colour of the sample's skin."""
    size = picture.width
    face = np.asarray(
        picture.crop((int(size * 0.4), int(size * 0.35), int(size * 0.6), int(size * 0.6))), float
    )
    red, green, blue = face[..., 0], face[..., 1], face[..., 2]
    return float(((red > 130) & (red > green + 15) & (green > blue)).mean())


def test_the_sample_portrait_is_cut_around_its_face(portrait: Image.Image) -> None:
    picture, crop = square(portrait, 128)
    assert (crop, picture.size, picture.mode) == (Crop.FACE, (128, 128), "RGB")
    assert skin_share(picture) > 0.6


def test_a_large_photo_finds_the_same_face(portrait: Image.Image) -> None:
    # So coarse that a pixel more or less at an edge hardly counts; another place differs by 70.
    small, _ = square(portrait, 16)
    large, crop = square(portrait.resize((2400, 2400)), 16)
    assert crop is Crop.FACE
    assert np.abs(np.asarray(small, int) - np.asarray(large, int)).mean() < 12


def test_a_landscape_is_cut_in_its_middle() -> None:
    photo = landscape(400, 200)
    picture, crop = square(photo, 64)
    assert crop is Crop.CENTRE
    middle = photo.crop((100, 0, 300, 200)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(picture, int) - np.asarray(middle, int)).mean() < 2


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_a_face_at_the_edge_keeps_the_square_inside(portrait: Image.Image, edge: str) -> None:
    frames = {
        "left": (160, 0, 512, 512),
        "right": (0, 0, 290, 512),
        "top": (60, 55, 460, 512),
        "bottom": (0, 0, 512, 185),
    }
    picture, crop = square(portrait.crop(frames[edge]), 128)
    assert crop is Crop.FACE
    # What lies outside of a picture would come out black, in whole rows or columns.
    pixels = np.asarray(picture, int).sum(axis=2)
    for line in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert line.max() > 60


def test_above_a_head_that_is_near_the_top_the_background_is_drawn_out(portrait: Image.Image) -> None:
    picture, crop = square(portrait.crop((0, 30, 512, 512)), 128)
    assert crop is Crop.FACE
    pixels = np.asarray(picture, int)
    assert (pixels[:6] == pixels[0]).all()
    # So the face stands where it belongs, and not too high.
    assert skin_share(picture) > 0.6


@pytest.mark.parametrize("size", [(5000, 40), (32, 5000), (32, 32), (33, 47)])
def test_odd_shapes_become_squares(size: tuple[int, int]) -> None:
    picture, crop = square(landscape(*size), 128)
    assert (picture.size, crop) == ((128, 128), Crop.CENTRE)


def test_of_two_faces_the_larger_is_taken(portrait: Image.Image) -> None:
    group = Image.new("RGB", (1024, 512), (90, 90, 90))
    group.paste(portrait.resize((256, 256)), (0, 0))
    group.paste(portrait, (512, 0))
    picture, crop = square(group, 128)
    assert crop is Crop.FACE
    assert skin_share(picture) > 0.6
