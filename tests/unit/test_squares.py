from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from avatarforge.domain.jobs import Crop, GenerationParameters
from avatarforge.imaging.crop import Square, cut, find_square, square


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


def test_a_head_near_the_top_stands_where_it_belongs_and_nothing_is_added(portrait: Image.Image) -> None:
    photo = portrait.crop((0, 30, 512, 512))
    picture, crop = square(photo, 128)
    assert crop is Crop.FACE
    assert skin_share(picture) > 0.6
    found = find_square(photo)
    frame = (found.left, found.top, found.left + found.side, found.top + found.side)
    cut = photo.resize((128, 128), Image.Resampling.LANCZOS, box=frame, reducing_gap=3.0)
    assert picture.tobytes() == cut.tobytes()


def pasted(portrait: Image.Image, side: int, place: tuple[int, int], tilt: float = 0) -> Image.Image:
    """The portrait `side` pixels wide, its middle at `place` in a photo of 1200 x 800."""
    photo = Image.linear_gradient("L").resize((1200, 800)).convert("RGB")
    small = portrait.resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    small = small.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    photo.paste(small, (place[0] - small.width // 2, place[1] - small.height // 2), small)
    return photo


def holds(found: Square, left: float, top: float, side: float) -> bool:
    return (
        found.crop is Crop.FACE
        and found.left <= left
        and found.top <= top
        and found.left + found.side >= left + side
        and found.top + found.side >= top + side
    )


@pytest.mark.parametrize("place", [(1000, 620), (210, 210), (600, 400)])
def test_a_small_face_is_found(portrait: Image.Image, place: tuple[int, int]) -> None:
    # 56 pixels: 7 % of the shorter side.
    side = 300
    found = find_square(pasted(portrait, side, place))
    left, top = (
        middle - side / 2 + share * side for middle, share in zip(place, (0.346, 0.129), strict=True)
    )
    assert holds(found, left, top, 0.186 * side)
    assert found.side < 4.5 * 0.186 * side


@pytest.mark.parametrize("tilt", [-45, -25, 25, 45])
def test_a_tilted_head_is_found_and_stays_tilted(portrait: Image.Image, tilt: float) -> None:
    found = find_square(pasted(portrait, 700, (600, 400), tilt))
    assert (found.crop, found.quarter_turns) == (Crop.FACE, 0)
    assert found.side < 4.5 * 0.186 * 700


def test_a_face_at_the_left_edge_of_a_wide_photo_is_in_the_square(portrait: Image.Image) -> None:
    # Waist-up in a corner: in the middle of the photo there is nobody.
    photo = pasted(portrait, 10, (0, 0))
    photo.paste(portrait.crop((115, 0, 512, 512)).resize((310, 400)), (0, 300))
    assert holds(find_square(photo), 49, 350, 74)


@pytest.mark.parametrize(
    "turn", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]
)
def test_a_photo_that_lies_on_its_side_becomes_an_upright_square(
    portrait: Image.Image, turn: Image.Transpose
) -> None:
    upright, _ = square(portrait, 16)
    picture, crop = square(portrait.transpose(turn), 16)
    assert crop is Crop.FACE
    assert skin_share(square(portrait.transpose(turn), 128)[0]) > 0.6
    # A pixel more or less at an edge differs by up to 25, another turn by 60 or more.
    assert np.abs(np.asarray(picture, int) - np.asarray(upright, int)).mean() < 30
    for other in Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270:
        assert np.abs(np.asarray(picture, int) - np.asarray(upright.transpose(other), int)).mean() > 45


def test_several_threads_find_the_same(portrait: Image.Image) -> None:
    photos = [pasted(portrait, side, (600, 400)) for side in (200, 500)] * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_square, photos)) == [find_square(photo) for photo in photos]


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_face(seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    noise = Image.fromarray(cells).resize((1200, 900), Image.Resampling.BICUBIC)
    assert find_square(noise) == Square(150, 0, 900, Crop.CENTRE)


@pytest.mark.parametrize("size", [(5000, 40), (32, 5000), (32, 32), (33, 47)])
def test_odd_shapes_become_squares(size: tuple[int, int]) -> None:
    picture, crop = square(landscape(*size), 128)
    assert (picture.size, crop) == ((128, 128), Crop.CENTRE)


UPRIGHT, LYING = (64, 128), (128, 64)
CROPPED, AS_IT_IS = GenerationParameters(seed=1), GenerationParameters(seed=1, crop_to_face=False)


@pytest.mark.parametrize("size", [UPRIGHT, LYING])
def test_other_proportions_keep_the_square_and_more_of_the_photo(
    portrait: Image.Image, size: tuple[int, int]
) -> None:
    found = find_square(portrait)
    picture, crop = cut(portrait, size, CROPPED)
    assert (picture.size, crop) == (size, Crop.FACE)
    # As far as the photo reaches: it is no longer than 512 pixels.
    short, long = min(found.side, 256), min(2 * found.side, 512)
    width, height = (short, long) if size == UPRIGHT else (long, short)
    left = min(max(found.left + (found.side - width) / 2, 0), 512 - width)
    top = min(max(found.top + (found.side - height) / 2, 0), 512 - height)
    expected = portrait.resize(
        size, Image.Resampling.LANCZOS, (left, top, left + width, top + height), reducing_gap=3.0
    )
    assert picture == expected


def test_a_photo_that_lies_on_its_side_gives_an_upright_image_of_other_proportions(
    portrait: Image.Image,
) -> None:
    upright, _ = cut(portrait, (16, 32), CROPPED)
    picture, crop = cut(portrait.transpose(Image.Transpose.ROTATE_90), (16, 32), CROPPED)
    assert (picture.size, crop) == ((16, 32), Crop.FACE)
    assert np.abs(np.asarray(picture, int) - np.asarray(upright, int)).mean() < 16


@pytest.mark.parametrize("size", [(5000, 40), (32, 5000), (33, 47)])
@pytest.mark.parametrize("wanted", [UPRIGHT, LYING, (128, 120)])
def test_odd_photos_become_any_proportions(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert cut(landscape(*size), wanted, CROPPED)[0].size == wanted


def test_a_photo_of_the_proportions_is_taken_as_it_is(portrait: Image.Image) -> None:
    tall = portrait.crop((0, 0, 256, 512))
    assert cut(tall, UPRIGHT, AS_IT_IS) == (
        tall.resize(UPRIGHT, Image.Resampling.LANCZOS, reducing_gap=3.0),
        Crop.CENTRE,
    )


def test_of_two_faces_the_larger_is_taken(portrait: Image.Image) -> None:
    group = Image.new("RGB", (1024, 512), (90, 90, 90))
    group.paste(portrait.resize((256, 256)), (0, 0))
    group.paste(portrait, (512, 0))
    picture, crop = square(group, 128)
    assert crop is Crop.FACE
    assert skin_share(picture) > 0.6
