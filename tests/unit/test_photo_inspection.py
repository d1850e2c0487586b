"""Uploads are judged by their content, and come out upright, whole and without metadata."""

import hashlib
import os
import tempfile
from io import BytesIO
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from avatarforge.domain.errors import (
    AvatarForgeError,
    DamagedPhoto,
    EmptyPhoto,
    InvalidPhotoDimensions,
    NotAnImage,
)
from avatarforge.imaging.decode import load_upright
from avatarforge.imaging.exif import read_orientation
from avatarforge.imaging.jpeg import MAX_SCANS, BrokenJpeg, strip_metadata
from avatarforge.ingress.upload import inspect
from avatarforge.ingress.upload.inspect import CleanPhoto, clean_photo
from avatarforge.settings import UploadSettings
from tests import pictures

LIMITS = UploadSettings()


def upload(content: bytes) -> BinaryIO:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with its last reader, as in an upload
    file.write(content)
    return file


def cleaned(content: bytes, filename: str = "photo.jpg", limits: UploadSettings = LIMITS) -> CleanPhoto:
    with upload(content) as file:
        photo = clean_photo(file, filename, limits)
        # Read through the open file, as storage does.
        return CleanPhoto(
            content=BytesIO(photo.content.read()),
            media_type=photo.media_type,
            size=photo.size,
            sha256=photo.sha256,
            width=photo.width,
            height=photo.height,
        )


def shown(content: bytes) -> Image.Image:
    """What is left of the upload, as the diffusion side sees it."""
    return load_upright(cleaned(content).content.read())


def swap_red_and_green() -> Image.Image:
    return Image.merge("RGB", [pictures.quarters().getchannel(band) for band in "GRB"])


def assert_quarters(image: Image.Image, tolerance: int = 4) -> None:
    assert image.mode == "RGB"
    found = np.array(pictures.read_quarters(image))
    assert np.abs(found - np.array(pictures.QUARTERS)).max() <= tolerance, found


# --- what is refused ------------------------------------------------------------------------------------


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(EmptyPhoto):
        cleaned(b"")


@pytest.mark.parametrize(
    "content",
    [pictures.text(), b"\xff", b"GIF", b"RIFF1234WAVEfmt ", b"BM" + bytes(100), b"II+\0" + bytes(99)],
)
def test_what_is_no_picture_is_refused_whatever_its_name_says(content: bytes) -> None:
    with pytest.raises(NotAnImage, match=r"portrait\.jpg"):
        cleaned(content, "portrait.jpg")


def test_a_picture_is_taken_whatever_its_name_says() -> None:
    assert cleaned(pictures.png(), "readme.txt").media_type == "image/png"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_jpeg_is_refused(share: float) -> None:
    whole = pictures.photo(400, 400, 40_000)
    with pytest.raises(DamagedPhoto):
        cleaned(whole[: int(len(whole) * share)])


def test_a_progressive_jpeg_is_taken_once_all_rows_are_there() -> None:
    whole = pictures.photo(400, 400, 40_000, progressive=True)
    scans = [start for start, _ in strip_metadata(whole).scans]
    for taken, rough in ((scans[3], 30), (len(whole) - 2000, 6), (len(whole) - 1, 0)):
        with Image.open(BytesIO(whole)) as before, Image.open(cleaned(whole[:taken]).content) as after:
            difference = np.asarray(before).astype(int) - np.asarray(after)
            assert np.abs(difference).mean() <= rough
    for refused in (100, scans[0] + 100, scans[1] + 100):
        with pytest.raises(DamagedPhoto):
            cleaned(whole[:refused])


@pytest.mark.parametrize(
    "trailer", [b"", bytes(5000), b"SEFH\2\0\xff\xe0" + pictures.SECRET * 20, b"\xff\xd9"[:1]]
)
@pytest.mark.parametrize("restart", [0, 4])
def test_a_jpeg_that_ends_without_its_marker_is_taken_and_what_stands_there_goes(
    restart: int, trailer: bytes
) -> None:
    whole = pictures.photo(400, 400, 40_000, restart_marker_blocks=restart)
    left = cleaned(whole[:-2] + trailer).content.read()
    assert pictures.SECRET not in left
    with Image.open(BytesIO(whole)) as before, Image.open(BytesIO(left)) as after:
        assert ImageChops.difference(before, after).getbbox() is None


def test_a_jpeg_half_loaded_into_a_file_of_zeros_is_refused() -> None:
    whole = pictures.photo(400, 400, 40_000)
    with pytest.raises(DamagedPhoto):
        cleaned(whole[:20_000] + bytes(20_000))


def test_a_thumbnail_is_not_taken_for_the_end_of_a_truncated_jpeg() -> None:
    whole = pictures.jpeg()
    thumbnail = pictures.segment(0xE1, b"Exif\0\0" + pictures.jpeg(pictures.quarters(32, 32)))
    with pytest.raises(DamagedPhoto):
        cleaned(whole[:2] + thumbnail + whole[2:-200])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_a_truncated_picture_of_another_format_is_refused(kind: str, share: float) -> None:
    rough = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = {"PNG": pictures.png, "WEBP": pictures.webp, "GIF": pictures.gif}[kind](rough)
    with pytest.raises(DamagedPhoto):
        cleaned(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    "content",
    [
        pictures.jpeg(pictures.quarters(8, 8)),
        pictures.png(pictures.quarters(8, 8)),
        pictures.webp(pictures.quarters(8, 8)),
        pictures.gif(pictures.quarters(8, 8)),
    ],
    ids=["jpeg", "png", "webp", "gif"],
)
def test_eight_by_eight_pixels_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidPhotoDimensions) as raised:
        cleaned(content)
    assert (raised.value.width, raised.value.height) == (8, 8)


def test_a_picture_at_the_bounds_is_taken() -> None:
    limits = UploadSettings(min_side=32, max_pixels=32 * 48)
    photo = cleaned(pictures.png(pictures.quarters(48, 32)), limits=limits)
    assert (photo.width, photo.height) == (48, 32)
    with pytest.raises(InvalidPhotoDimensions):
        cleaned(pictures.png(pictures.quarters(50, 32)), limits=limits)


def test_a_jpeg_may_have_four_times_the_pixels() -> None:
    limits = UploadSettings(min_side=32, max_pixels=32 * 48)
    photo = cleaned(pictures.jpeg(pictures.quarters(96, 64)), limits=limits)
    assert (photo.width, photo.height) == (96, 64)
    with pytest.raises(InvalidPhotoDimensions, match="at most 6144 pixels"):
        cleaned(pictures.jpeg(pictures.quarters(98, 64)), limits=limits)


@pytest.mark.parametrize(
    ("content", "side"),
    [
        (pictures.png_bomb(), 30_000),
        (pictures.png_bomb(10_000, 10_000), 10_000),
        (pictures.webp(Image.new("RGB", (16383, 16383))), 16383),
        (pictures.gif_bomb(), 65535),
    ],
    ids=["png", "png that Pillow would only warn of", "webp", "gif"],
)
def test_a_bomb_is_refused_without_decoding_it(content: bytes, side: int) -> None:
    assert len(content) < 1_000_000
    before = peak_memory()
    with pytest.raises(InvalidPhotoDimensions) as raised:
        cleaned(content)
    assert (raised.value.width, raised.value.height) == (side, side)
    assert peak_memory() - before < 50 * 1024 * 1024


def peak_memory() -> int:
    """Bytes that this process holds resident now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123  # no file of a folder
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_jpeg_with_endless_scans_is_refused() -> None:
    whole = pictures.jpeg(progressive=True)
    scan = whole.index(b"\xff\xda")
    many = whole[:scan] + (whole[scan:-2] * (MAX_SCANS + 1)) + whole[-2:]
    with pytest.raises(DamagedPhoto, match="scans"):
        cleaned(many)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "ends before"),
        (b"\xff\xd9", "no image data"),
        (b"\xff\xd8\xff\xd9", "second file"),
        (b"\xff\xe1\xff\xff", "inside a segment"),
        (b"\xff\xda\0\2\xff\xd9", "before the frame"),
        (b"\xff\xc0\0\4\0\0", "too short"),
        (pictures.segment(0xC0, bytes([8, 0, 64, 0, 64, 1])) * 2, "two frames"),
        (b"\xff\xfe\0\2" * 5000, "segments"),
    ],
)
def test_segments_that_make_no_picture_are_named(body: bytes, reason: str) -> None:
    with pytest.raises(BrokenJpeg, match=reason):
        strip_metadata(b"\xff\xd8" + body)


def test_a_jpeg_without_its_tables_is_refused() -> None:
    whole = pictures.jpeg()
    # Quantisation tables: for absent Huffman tables libjpeg takes the ones of motion JPEG.
    start = whole.index(b"\xff\xdb")
    end = whole.index(b"\xff\xc0")
    with pytest.raises(DamagedPhoto):
        cleaned(whole[:start] + whole[end:])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [
            pictures.jpeg_with_everything(),
            pictures.jpeg(progressive=True),
            pictures.png_with_everything(),
            pictures.png_palette(transparent=True),
            pictures.webp(exif=pictures.exif(6)),
            pictures.animated("WEBP"),
            pictures.animated("GIF"),
        ]
    ),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
)
def test_a_picture_with_changed_bytes_is_taken_or_refused_but_never_an_accident(
    whole: bytes, changes: list[tuple[float, bytes]]
) -> None:
    content = bytearray(whole)
    for place, change in changes:
        at = int(place * (len(content) - 1))
        content[at : at + len(change)] = change
    try:
        photo = cleaned(bytes(content))
    except AvatarForgeError:
        return
    assert photo.size == len(photo.content.read())


def test_a_large_jpeg_with_text_among_its_pixels_is_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "_MAX_TRIMMED_PIXELS", 1000)
    whole = pictures.jpeg(orientation=6)
    photo = cleaned(whole[:-2] + pictures.SECRET + b"\xff\xd9")
    left = photo.content.read()
    assert pictures.SECRET not in left
    assert (photo.width, photo.height) == (96, 64)
    assert_quarters(load_upright(left))


def test_a_jpeg_of_64_megapixels_is_taken_and_decoded_at_half_its_sides() -> None:
    content = pictures.saved(Image.new("RGB", (9248, 6936), (200, 100, 50)), "JPEG", quality=50)
    photo = cleaned(content)
    assert (photo.width, photo.height) == (9248, 6936)
    seen = load_upright(photo.content.read())
    assert seen.size == (4624, 3468)
    assert max(abs(a - b) for a, b in zip(seen.getpixel((9, 9)), (200, 100, 50), strict=True)) <= 8


def test_a_progressive_jpeg_of_more_samples_than_memory_is_refused() -> None:
    limits = UploadSettings(max_pixels=64 * 64)
    image = Image.new("RGB", (88, 88))
    cleaned(pictures.saved(image, "JPEG", subsampling=2, progressive=True), limits=limits)
    with pytest.raises(InvalidPhotoDimensions):
        cleaned(pictures.saved(image, "JPEG", subsampling=0, progressive=True), limits=limits)


# --- what is fine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_jpeg_comes_out_upright(turn: int) -> None:
    content = pictures.jpeg(orientation=turn)
    photo = cleaned(content)
    assert (photo.media_type, photo.width, photo.height) == ("image/jpeg", 96, 64)
    assert_quarters(shown(content))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_turned_picture_of_another_format_is_stored_upright(kind: str, turn: int) -> None:
    turned = Image.open(BytesIO(pictures.jpeg(orientation=turn)))
    save = {"PNG": pictures.png, "WEBP": pictures.webp}[kind]
    photo = cleaned(save(turned, exif=pictures.exif(turn)))
    assert (photo.media_type, photo.width, photo.height) == ("image/png", 96, 64)
    with Image.open(photo.content) as stored:
        assert_quarters(stored.convert("RGB"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restart", [0, 4])
def test_a_jpeg_keeps_its_pixels_bit_by_bit(progressive: bool, restart: int) -> None:
    whole = pictures.photo(400, 300, 40_000, progressive=progressive, restart_marker_blocks=restart)
    with Image.open(BytesIO(whole)) as before, Image.open(cleaned(whole).content) as after:
        assert ImageChops.difference(before, after).getbbox() is None


@pytest.mark.parametrize(
    "content",
    [
        pictures.cmyk_jpeg(),
        pictures.cmyk_jpeg_without_adobe(),
        pictures.png_16_bit_rgb(),
        pictures.png_palette(),
        pictures.png(),
        pictures.webp(),
        pictures.gif(),
        pictures.animated("GIF"),
        pictures.animated("WEBP"),
        pictures.animated("PNG"),
        pictures.mpo(),
        pictures.jpeg(progressive=True),
        pictures.jpeg_with_everything(),
        pictures.png_with_everything(),
    ],
    ids=[
        *(
            "Adobe's CMYK",
            "CMYK without Adobe",
            "16-bit RGB",
            "palette",
            "PNG",
            "WebP",
            "GIF",
            "animated GIF",
        ),
        *(
            "animated WebP",
            "animated PNG",
            "MPO",
            "progressive",
            "JPEG with everything",
            "PNG with everything",
        ),
    ],
)
def test_the_right_colours_come_out_at_the_right_places(content: bytes) -> None:
    picture = shown(content)
    assert picture.size == (96, 64)
    assert_quarters(picture)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    picture = shown(pictures.png_16_bit_grey())
    assert [picture.getpixel((8 + 16 * step, 32)) for step in range(4)] == [
        (value, value, value) for value in (0, 64, 128, 255)
    ]


def test_16_bit_grey_that_was_stored_as_it_is_is_scaled_too() -> None:
    assert load_upright(pictures.png_16_bit_grey()).getpixel((40, 32)) == (128, 128, 128)


def test_black_and_white_comes_out_black_and_white() -> None:
    bilevel = Image.new("1", (64, 64), 1)
    bilevel.paste(0, (0, 0, 32, 64))
    picture = shown(pictures.png(bilevel))
    assert (picture.getpixel((8, 8)), picture.getpixel((56, 8))) == ((0, 0, 0), (255, 255, 255))


def test_grey_jpegs_come_out_grey() -> None:
    assert shown(pictures.jpeg(Image.new("L", (64, 64), 77))).getpixel((8, 8)) == (77, 77, 77)


def test_alpha_is_kept_and_flattened_on_white_at_last() -> None:
    content = pictures.png_alpha()
    with Image.open(cleaned(content).content) as stored:
        assert stored.mode == "RGBA"
    red, green, blue, white = pictures.read_quarters(shown(content))
    assert (red, blue, white) == ((255, 0, 0), (255, 255, 255), (255, 255, 255))
    assert green[1] == 255
    assert abs(green[0] - 127) <= 1
    assert abs(green[2] - 127) <= 1


def test_a_transparent_palette_entry_becomes_white_paper() -> None:
    assert_quarters(shown(pictures.png_palette(transparent=True)))
    with Image.open(cleaned(pictures.png_palette(transparent=True)).content) as stored:
        assert stored.getpixel((90, 60))[3] == 0
        assert stored.getpixel((4, 4)) == (255, 0, 0, 255)


@pytest.mark.parametrize("save", [pictures.jpeg, pictures.png, pictures.webp])
def test_a_colour_profile_is_kept_and_applied_at_last(save: object) -> None:
    assert callable(save)
    picture = shown(save(swap_red_and_green(), icc_profile=pictures.swapped_profile()))
    assert_quarters(picture, tolerance=12)


def test_a_broken_colour_profile_is_no_reason_to_refuse() -> None:
    for content in (pictures.jpeg(icc_profile=b"x" * 200), pictures.png(icc_profile=b"x" * 200)):
        assert_quarters(shown(content))


def test_a_chunk_with_a_broken_name_is_passed_over_before_the_pixels() -> None:
    content = pictures.png()
    broken = content[:33] + pictures.chunk(b"=CCP", bytes(100)) + content[33:]
    assert cleaned(broken).sha256 == cleaned(content).sha256


@pytest.mark.parametrize("place", ["behind the profile", "in a tag of its own"])
def test_a_huge_colour_profile_is_applied_and_dropped(place: str) -> None:
    content = pictures.jpeg(swap_red_and_green(), icc_profile=pictures.huge_profile(place))
    assert cleaned(content).size < 100_000
    assert_quarters(shown(content), tolerance=12)


# --- what is left ---------------------------------------------------------------------------------------

FOREIGN = [
    pictures.SECRET,
    *(b"GPS", b"xmpmeta", b"ns.adobe.com", b"8BIM", b"Photoshop", b"MPF", b"JFXX", b"ftyp", b"tEXt", b"eXIf"),
    *(b"zTXt", b"iTXt", b"tIME"),
]


@pytest.mark.parametrize(
    "content",
    [
        pictures.jpeg_with_everything(1),
        pictures.jpeg_with_everything(6),
        pictures.mpo(),
        pictures.png_with_everything(),
        pictures.webp(exif=pictures.exif(1, pictures.SECRET), xmp=b"<x:xmpmeta>" + pictures.SECRET),
        pictures.gif(comment=pictures.SECRET) + pictures.SECRET,
    ],
    ids=["jpeg", "turned jpeg", "mpo", "png", "webp", "gif"],
)
def test_no_metadata_is_left(content: bytes) -> None:
    left = cleaned(content).content.read()
    assert [mark for mark in FOREIGN if mark in left] == []
    with Image.open(BytesIO(left)) as image:
        assert set(image.getexif()) <= {0x0112}
        assert getattr(image, "n_frames", 1) == 1


def test_the_test_pictures_do_have_metadata() -> None:
    for content in (pictures.jpeg_with_everything(), pictures.png_with_everything()):
        assert pictures.SECRET in content
    for mark in (b"xmpmeta", b"8BIM", b"MPF", b"JFXX", b"ftyp"):
        assert mark in pictures.jpeg_with_everything()


def test_nothing_is_left_behind_the_end_marker() -> None:
    left = cleaned(pictures.jpeg_with_everything()).content.read()
    assert left.endswith(b"\xff\xd9")
    assert left.count(b"\xff\xd8") == 1


def test_size_and_hash_are_those_of_the_content() -> None:
    for content in (pictures.jpeg_with_everything(), pictures.png()):
        photo = cleaned(content)
        left = photo.content.read()
        assert (photo.size, photo.sha256) == (len(left), hashlib.sha256(left).hexdigest())


def test_cleaning_twice_changes_nothing_more() -> None:
    once = cleaned(pictures.jpeg_with_everything()).content.read()
    assert cleaned(once).content.read() == once


def test_the_content_may_be_read_from_any_place() -> None:
    with upload(pictures.jpeg_with_everything()) as file:
        content = clean_photo(file, "photo.jpg", LIMITS).content
        whole = content.read()
        for start in range(0, len(whole), 7):
            content.seek(start)
            assert content.read(11) == whole[start : start + 11]
        assert content.seek(-2, os.SEEK_END) == len(whole) - 2
        assert content.read() == b"\xff\xd9"


def test_a_photo_in_memory_is_examined_like_one_in_a_file() -> None:
    for content in (pictures.jpeg_with_everything(), pictures.png()):
        in_memory = clean_photo(BytesIO(content), "photo", LIMITS)
        assert in_memory.content.read() == cleaned(content).content.read()


@pytest.mark.parametrize(
    "byte_order",
    [b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0"],
)
def test_an_orientation_is_read_in_either_byte_order(byte_order: bytes) -> None:
    assert read_orientation(b"Exif\0\0" + byte_order) == 6


@given(st.binary(max_size=64))
def test_a_broken_exif_block_means_upright(block: bytes) -> None:
    assert read_orientation(b"MM\0*" + block) in range(1, 9)
    assert read_orientation(block) in range(1, 9)
