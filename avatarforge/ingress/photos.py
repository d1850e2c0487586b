"""Uploads examined by their content, never by their name, and freed from metadata."""

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

from avatarforge.domain.errors import AvatarForgeError, DamagedPhoto, EmptyPhoto, NotAnImage, PhotoDimensions
from avatarforge.ingress import jpeg
from avatarforge.settings import UploadSettings
from avatarforge.storage import pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanPhoto:
    """The file to store."""

    content: BinaryIO
    """At its beginning, seekable. It may read from the file that was examined: keep that open as long."""
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    """Of `content`, in hex."""
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A picture worth keeping: whole and within bounds."""

    media_type: str
    """What it is stored as: `image/jpeg` or `image/png`."""
    width: int
    height: int
    """Pixels as people see the picture: after the orientation."""
    _written: Callable[[], io.BufferedReader | io.BytesIO]

    def cleaned(self) -> CleanPhoto:
        """The picture as a file without metadata. Blocks."""
        content = self._written()
        digest = hashlib.file_digest(content, "sha256")
        size = content.seek(0, io.SEEK_END)
        content.seek(0)
        return CleanPhoto(
            content=content,
            media_type=self.media_type,
            size=size,
            sha256=digest.hexdigest(),
            width=self.width,
            height=self.height,
        )


def examine(file: BinaryIO, filename: str, limits: UploadSettings) -> Photo:
    """The picture in `file`, of which nobody else knows. Blocks: use a thread.

    JPEGs (the first picture of MPO included) keep their pixels bit by bit and at most an orientation.
    PNG, WebP and GIF become PNG: first frame, upright, eight bits a channel, with their colour profile.
    Raises `EmptyPhoto`, `NotAnImage`, `DamagedPhoto` or `PhotoDimensions`.
    """
    file.seek(0)
    head = file.read(16)
    if not head:
        raise EmptyPhoto
    kind = _kind(head)
    file.seek(0)
    if kind is None:
        raise NotAnImage(filename)
    if kind == "JPEG":
        return _examined_jpeg(file, filename, limits)
    return _examined_other(file, kind, filename, limits)


def is_decoded(file: BinaryIO) -> bool:
    """Whether `examine` is going to hold the file's pixels in memory: not those of a JPEG, whose top alone is
    decoded."""
    return _decoded_kind(file) is not None


def pixels_to_decode(file: BinaryIO, limits: UploadSettings) -> int:
    """How many pixels `examine` is going to hold in memory: none of a file that is not decoded, and none of
    one that it refuses before. Blocks."""
    kind = _decoded_kind(file)
    if kind is None:
        return 0
    try:
        if kind == "GIF":
            width, height = _gif_canvas(file)
        else:
            with Image.open(file, formats=[kind]) as image:
                width, height = image.size
    except Exception:
        # Any kind of error, as in `_decoding`: `examine` meets it again and says what is wrong.
        return 0
    return width * height if width * height <= limits.max_pixels else 0


def _decoded_kind(file: BinaryIO) -> str | None:
    """Pillow's name of the file's format, if it is one that is decoded."""
    file.seek(0)
    kind = _kind(file.read(16))
    file.seek(0)
    return None if kind == "JPEG" else kind


def _kind(head: bytes) -> str | None:
    """Pillow's name of the format that a file with these first 16 bytes has, if it is one we read."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def _examined_jpeg(file: BinaryIO, filename: str, limits: UploadSettings) -> Photo:
    with _decoding(filename):
        found = jpeg.stripped(_mapped(file))
    _check_bounds(found.width, found.height, limits)
    with _decoding(filename), Image.open(io.BytesIO(found.sample()), formats=["JPEG"]) as image:
        # The walk has found the end; what is left to learn is whether frame and tables decode. A full
        # decode would cost five to ten times as much, and tell no more: libjpeg paints over gaps.
        image.draft("L", (image.width // 8, image.height // 8))
        image.load()
    width, height = found.width, found.height
    if pictures.swaps_sides(found.orientation):
        width, height = height, width
    return Photo(media_type="image/jpeg", width=width, height=height, _written=found.content)


def _mapped(file: BinaryIO) -> jpeg.Source:
    """The file's bytes without reading them all, where it is a file of the system."""
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        return file.read()
    # Closed with its last reader: what is cleaned reads from it.
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _examined_other(file: BinaryIO, kind: str, filename: str, limits: UploadSettings) -> Photo:
    with _decoding(filename):
        if kind == "GIF":
            # Pillow makes room for a GIF's first frame as it opens the file.
            _check_bounds(*_gif_canvas(file), limits)
        with Image.open(file, formats=[kind]) as image:
            _check_bounds(image.width, image.height, limits)
            orientation = pictures.orientation(image.info.get("exif", b""))
            profile = image.info.get("icc_profile")
            picture = pictures.turned(pictures.eight_bit(image), orientation)
    return Photo(
        media_type="image/png",
        width=picture.width,
        height=picture.height,
        _written=partial(_as_png, picture, _usable(profile, picture.mode)),
    )


def _as_png(picture: Image.Image, profile: bytes | None) -> io.BytesIO:
    picture.info.clear()
    content = io.BytesIO()
    # For photos run lengths alone take less than half the default's time and give as few bytes.
    picture.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE, icc_profile=profile)
    content.seek(0)
    return content


def _check_bounds(width: int, height: int, limits: UploadSettings) -> None:
    if min(width, height) < limits.min_side or width * height > limits.max_pixels:
        raise PhotoDimensions(width, height, limits.min_side, limits.max_pixels)


def _gif_canvas(file: BinaryIO) -> tuple[int, int]:
    """Width and height of screen and first frame together (GIF89a, sections 18 and 20)."""
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


def _usable(profile: bytes | None, mode: str) -> bytes | None:
    """The colour profile, if it is one for pictures of this mode (ICC.1, section 7.2: bytes 16 to 20)."""
    if profile is None or not 128 <= len(profile) <= jpeg.MOST_ICC_BYTES:
        return None
    wanted = b"GRAY" if mode == "L" else b"RGB "
    return profile if profile[16:20] == wanted else None


@contextmanager
def _decoding(filename: str) -> Iterator[None]:
    """Whatever a decoder says about hostile bytes, as `DamagedPhoto`."""
    try:
        yield
    except (AvatarForgeError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise almost any kind: OSError, SyntaxError, ValueError, struct.error, IndexError.
        raise DamagedPhoto(filename, str(error) or type(error).__name__) from error
