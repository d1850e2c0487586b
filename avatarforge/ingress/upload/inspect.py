"""Inspects photos by their content, never by their name, and frees them from metadata."""

import hashlib
import io
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from PIL import Image

from avatarforge.domain.errors import (
    AvatarForgeError,
    DamagedPhoto,
    EmptyPhoto,
    InvalidPhotoDimensions,
    NotAnImage,
    UnsupportedPhoto,
)
from avatarforge.imaging import decode, heif, jpeg, png
from avatarforge.imaging.exif import read_orientation, swaps_sides
from avatarforge.imaging.formats import HEAD_BYTES, PhotoFormat, UnsupportedFormat, detect_format
from avatarforge.imaging.ranges import Source, open_pieces
from avatarforge.settings import UploadSettings

_REDUCTION = 4
"""A JPEG may have so many times the pixels of other photos, since it is then decoded at half its sides."""
_MAX_SAMPLES = 3
"""Samples for each pixel that others may have, which a JPEG of several scans may have: as it is decoded,
all of them are in memory, two bytes each."""
_QUALITY = 95
_MAX_TAILS = 8
"""Ends of scans that are looked into, with two decodes each, or four where there is something."""
_MAX_TRIMMED_PIXELS = 4_000_000
"""Of a JPEG whose scans are trimmed, with a few dozen decodes; a larger one is encoded anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanPhoto:
    """An image without metadata, ready to store."""

    content: BinaryIO
    """At its beginning, seekable. It may read from the inspected file: keep that open as long."""
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    """Of `content`, in hex."""
    width: int
    height: int
    """Pixels as people see the image: after the orientation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UndecodedPhoto:
    """A photo that must be decoded to be freed from metadata."""

    pixels: int
    """How many are in memory meanwhile."""
    clean: Callable[[], CleanPhoto]
    """Decodes it. Blocks, and raises the errors of `clean_photo`."""


def clean_photo(file: BinaryIO, filename: str, limits: UploadSettings) -> CleanPhoto:
    """Inspect the image in `file`, which nobody else uses, and free it from metadata. Blocks: use a thread.

    JPEGs (the first image of MPO included) keep their pixels bit by bit and at most an orientation and the
    numbers of their colour profile. They are encoded anew where nothing but a large profile says what the
    colours are, and large ones where text hides among the pixels. All others become PNG: first frame,
    upright, eight bits a channel, in sRGB.
    Raises `EmptyPhoto`, `NotAnImage`, `UnsupportedPhoto`, `DamagedPhoto` or `InvalidPhotoDimensions`.
    """
    photo = inspect_photo(file, filename, limits)
    return photo.clean() if isinstance(photo, UndecodedPhoto) else photo


def inspect_photo(file: BinaryIO, filename: str, limits: UploadSettings) -> CleanPhoto | UndecodedPhoto:
    """Do what of `clean_photo` can be done without holding the pixels in memory."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise EmptyPhoto
    kind = detect_format(head)
    if kind is None:
        raise NotAnImage(filename)
    if isinstance(kind, UnsupportedFormat):
        raise UnsupportedPhoto(filename, kind.kind, kind.advice)
    if kind is PhotoFormat.HEIF and not heif.is_available():
        raise UnsupportedPhoto(
            filename, "a HEIC picture", "Send it as JPEG, or install pi-heif with the server."
        )
    if kind is PhotoFormat.JPEG:
        return _inspect_jpeg(file, filename, limits)
    with _translate_errors(filename):
        width, height = _read_size(file, kind)
    _check_bounds(width, height, limits.min_side, limits.max_pixels)
    return UndecodedPhoto(pixels=width * height, clean=partial(_clean_other, file, kind, filename))


def _describe(content: BinaryIO, media_type: str, width: int, height: int) -> CleanPhoto:
    digest = hashlib.file_digest(content, "sha256")  # type: ignore[arg-type]  # any reader will do
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    return CleanPhoto(
        content=content,
        media_type=media_type,
        size=size,
        sha256=digest.hexdigest(),
        width=width,
        height=height,
    )


def _inspect_jpeg(file: BinaryIO, filename: str, limits: UploadSettings) -> CleanPhoto | UndecodedPhoto:
    with _translate_errors(filename):
        found = jpeg.strip_metadata(_map_memory(file))
    if found.bits != 8:
        raise UnsupportedPhoto(filename, f"{found.bits}-bit JPEG", "Save it with 8 bits a channel.")
    if found.process not in jpeg.DECODED_PROCESSES:
        raise UnsupportedPhoto(filename, "lossless JPEG", "Save it as an ordinary JPEG, or as PNG.")
    most = _REDUCTION * limits.max_pixels
    if len(found.scans) > 1 and found.samples > _MAX_SAMPLES * limits.max_pixels:
        most = limits.max_pixels
    _check_bounds(found.width, found.height, limits.min_side, most)
    with _translate_errors(filename), Image.open(io.BytesIO(found.build_sample()), formats=["JPEG"]) as image:
        # The walk has found the end; what is left to learn is whether frame and tables decode. A full
        # decode would cost five to ten times as much, and tell no more: libjpeg paints over gaps.
        image.draft("L", (image.width // 8, image.height // 8))
        image.load()
    tails = found.find_suspicious_tails()
    if found.has_end and found.profile is None and not tails:
        return _describe_jpeg(found)
    pixels = min(found.width * found.height, decode.MAX_DECODED_PIXELS)
    return UndecodedPhoto(pixels=pixels, clean=partial(_clean_jpeg, found, tails, filename))


def _clean_jpeg(found: jpeg.StrippedJpeg, tails: list[tuple[int, int]], filename: str) -> CleanPhoto:
    """Look into a JPEG whose end or tails are in doubt, or whose colours must be converted."""
    with _translate_errors(filename):
        start, end = found.scans[-1]
        if found.is_cut and not found.is_complete_without(end, end):
            raise DamagedPhoto(filename, "it ends before its last row")
        if not found.has_end:
            tails = [(start, end), *tails[:_MAX_TAILS]]
        if found.profile is None and not _has_foreign_bytes(found, tails):
            return _describe_jpeg(found)
        with found.open() as content, Image.open(content, formats=["JPEG"]) as image:
            decode.reduce_huge(image)
            encoded = io.BytesIO()
            if found.profile is None:
                # With the same tables, so that hardly a pixel changes.
                image.save(encoded, "JPEG", quality="keep", exif=b"")
            else:
                picture = decode.apply_orientation(decode.to_srgb(image, found.profile), found.orientation)
                picture.info.clear()
                picture.save(encoded, "JPEG", quality=_QUALITY, subsampling=0)
        again = jpeg.strip_metadata(encoded.getvalue())
        if found.profile is None:
            again.head, again.orientation = found.head, found.orientation
        return _describe_jpeg(again)


def _has_foreign_bytes(found: jpeg.StrippedJpeg, tails: list[tuple[int, int]]) -> bool:
    """Trim the tails; where that would take long, return whether one of the first has foreign bytes."""
    if len(tails) <= _MAX_TAILS and found.width * found.height <= _MAX_TRIMMED_PIXELS:
        for tail in tails:
            found.trim(*tail)
        return False
    return any(
        found.is_complete_without(max(start, end - jpeg.TAIL), end) for start, end in tails[:_MAX_TAILS]
    )


def _describe_jpeg(found: jpeg.StrippedJpeg) -> CleanPhoto:
    width, height = found.width, found.height
    if swaps_sides(found.orientation):
        width, height = height, width
    return _describe(found.open(), "image/jpeg", width, height)


def _map_memory(file: BinaryIO) -> Source:
    """Return the file's bytes, without reading them all where it is a file of the system."""
    file.seek(0)
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        return file.read()
    # Closed with its last reader: what is cleaned reads from it.
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _read_size(file: BinaryIO, kind: PhotoFormat) -> tuple[int, int]:
    """Return how many pixels are decoded: width and height. Raises any kind of error."""
    file.seek(0)
    if kind is PhotoFormat.GIF:
        # Pillow makes room for a GIF's first frame as it opens the file.
        return _read_gif_size(file)
    if kind is PhotoFormat.HEIF:
        return heif.read_size(file.read())
    if kind is PhotoFormat.PNG:
        found = png.strip_metadata(_map_memory(file))
        return found.width, found.height
    with Image.open(_mend_avif(file) if kind is PhotoFormat.AVIF else file, formats=[kind]) as image:
        return image.size


def _mend_avif(file: BinaryIO) -> BinaryIO:
    """Return an AVIF file with the brand in the first place that Pillow asks for there, and no metadata.

    Without a reference (`cdsc`) libavif passes them over; broken ones would be a reason to it to refuse.
    """
    file.seek(0)
    head, mark, rest = file.read().partition(b"mdat")
    head = head[:8] + b"avif" + head[12:].replace(b"cdsc", b"free")
    return io.BytesIO(head + mark + rest)


def _clean_other(file: BinaryIO, kind: PhotoFormat, filename: str) -> CleanPhoto:
    with _translate_errors(filename):
        picture = _decode(file, kind)
        picture.info.clear()
        content = io.BytesIO()
        # For photos run lengths alone take less than half the default's time and give as few bytes.
        picture.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        content.seek(0)
        return _describe(content, "image/png", picture.width, picture.height)


def _decode(file: BinaryIO, kind: PhotoFormat) -> Image.Image:
    """Decode a file of any format but JPEG: upright, in sRGB. Raises any kind of error."""
    file.seek(0)
    if kind is PhotoFormat.HEIF:
        return decode.to_srgb(*heif.decode(file.read()))
    if kind is PhotoFormat.PNG:
        return _decode_png(png.strip_metadata(_map_memory(file)))
    codes = None
    if kind is PhotoFormat.AVIF:
        codes = heif.read_codes(file.read())
        file = _mend_avif(file)
    with Image.open(file, formats=[kind]) as image:
        picture = decode.to_srgb(image, image.info.get("icc_profile"), codes)
        return decode.apply_orientation(picture, read_orientation(image.info.get("exif", b"")))


def _decode_png(found: png.StrippedPng) -> Image.Image:
    with open_pieces(found.pieces) as content, Image.open(content, formats=["PNG"]) as image:
        try:
            image.load()
        except OSError:
            image = Image.open(io.BytesIO(found.repack()), formats=["PNG"])
        picture = decode.to_srgb(image, found.profile, found.codes)
    return decode.apply_orientation(picture, found.orientation)


def _check_bounds(width: int, height: int, min_side: int, max_pixels: int) -> None:
    if min(width, height) < min_side or width * height > max_pixels:
        raise InvalidPhotoDimensions(width, height, min_side, max_pixels)


def _read_gif_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height of screen and first frame together (GIF89a, sections 18 and 20)."""
    screen = file.read(13)
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
    while (block := file.read(1)) == b"!":
        file.seek(1, io.SEEK_CUR)
        while size := file.read(1)[0]:
            file.seek(size, io.SEEK_CUR)
    if block != b",":
        raise ValueError("it has no picture")
    left, top, frame_width, frame_height = struct.unpack("<4H", file.read(8))
    file.seek(0)
    return max(width, left + frame_width), max(height, top + frame_height)


@contextmanager
def _translate_errors(filename: str) -> Iterator[None]:
    """Raise whatever a decoder raises for hostile bytes as `DamagedPhoto`."""
    try:
        yield
    except (AvatarForgeError, MemoryError):
        raise
    except (jpeg.BrokenJpeg, png.BrokenPng) as error:
        raise DamagedPhoto(filename, str(error)) from error
    except Exception as error:
        # Pillow's readers raise almost any kind: OSError, SyntaxError, ValueError, struct.error, IndexError.
        # Their texts are not for people: they name objects and addresses in memory.
        raise DamagedPhoto(filename, "its data are broken, or cut off") from error
