"""Decodes HEIC and HEIF with libheif and libde265 (the package pi-heif, which decodes only)."""

from functools import cache
from importlib.util import find_spec
from typing import Any

from PIL import Image

from avatarforge.imaging.colour import TELEVISION, ColourCodes

_OPTIONS = (4, True, False, True, True, "", False)
"""Of `_pi_heif.load_file`: 4 threads, 8 bits a channel, RGB, rows without gaps, any decoder, usual limits."""


@cache
def is_available() -> bool:
    """Return whether the package is installed; who does not want it uninstalls it."""
    return find_spec("pi_heif") is not None


def read_size(content: bytes) -> tuple[int, int]:
    """Return width and height in pixels of the primary image, turned upright. Raises pi-heif's errors."""
    (width, height), _ = _open(content).size_mode
    return width, height


def decode(content: bytes) -> tuple[Image.Image, bytes | None, ColourCodes | None]:
    """Decode the primary image upright, with what it says of its colours. Raises pi-heif's errors.

    The file's own turns (`irot`, `imir`) are applied; an orientation in EXIF does not count beside them.
    """
    primary = _open(content)
    data = primary.data
    # Known once the data are decoded.
    size, mode = primary.size_mode
    image = Image.frombytes(mode, size, data, "raw", mode, primary.stride)
    profile = primary.color_profile or {}
    return image, None if profile.get("type") == "nclx" else profile.get("data"), _get_codes(primary)


def read_codes(content: bytes) -> ColourCodes | None:
    """Return the colour codes of a HEIF or AVIF file; `None` if there are none, or it cannot be read."""
    try:
        return _get_codes(_open(content))
    # The package raises errors of many kinds.
    except Exception:
        return None


def _open(content: bytes) -> Any:
    """Return the primary image, not yet decoded, in pi-heif's own form.

    Not by `pi_heif.open_heif`, which reads the metadata as well: types that are no UTF-8 crash the process
    there, and thumbnails and depth maps would be read for nothing.
    """
    try:
        return _load_primary(content)
    # The package raises errors of many kinds.
    except Exception:
        return _load_primary(_mend_handler(content))


def _load_primary(content: bytes) -> Any:
    # A library of 4 MB that only some uploads have a use for.
    import _pi_heif

    images = _pi_heif.load_file(content, *_OPTIONS)
    return next(image for image in images if image is not None and image.primary)


def _mend_handler(content: bytes) -> bytes:
    """Write the boxes anew that say no more than that this is a picture (ISO/IEC 23008-12, section 6.2).

    libheif insists on each of their bytes, and no viewer needs any.
    """
    meta = int.from_bytes(content[:4], "big")
    size = int.from_bytes(content[meta + 12 : meta + 16], "big")
    if content[meta + 4 : meta + 8] != b"meta" or not 32 <= size <= 256:
        return content
    handler = size.to_bytes(4, "big") + b"hdlr" + bytes(8) + b"pict" + bytes(size - 20)
    return content[: meta + 8] + bytes(4) + handler + content[meta + 12 + size :]


def _get_codes(primary: Any) -> ColourCodes | None:
    profile = primary.color_profile
    if not profile or profile["type"] != "nclx":
        return None
    codes = profile["data"]
    transfer = codes["transfer_characteristics"]
    # Cameras write a television's transfer where they mean sRGB's, and Chromium shows it so.
    return ColourCodes(codes["color_primaries"], 13 if transfer in TELEVISION else transfer)
