"""Reads the few facts of EXIF that change how an image looks (Exif 2.32; TIFF 6.0).

Read here, since Pillow's own reader warns about every broken block.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_ORIENTATION, _EXIF_IFD, _INTEROPERABILITY_IFD, _COLOR_SPACE = 0x0112, 0x8769, 0xA005, 0xA001
_NEW_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 0x00FE, 0x014A, 0xC612
_SHORT, _ASCII = 3, 2
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    kind: int
    count: int
    field: bytes
    """Four bytes: the value, or where it is."""


def swaps_sides(exif_orientation: int) -> bool:
    """Return whether the stored width is the height of what people see."""
    return exif_orientation >= 5


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8; 1 if it is absent or unreadable (Exif 2.32, section 4.6.4).

    `exif` is a TIFF structure, with or without the `Exif` mark before it. As in Chromium only one SHORT
    counts, and the first of several entries.
    """
    order, tiff = _split(exif)
    for entry in _entries(order, tiff, 4):
        if entry.tag == _ORIENTATION:
            value = _short(order, entry)
            return value if value is not None and 2 <= value <= 8 else 1
    return 1


def is_adobe_rgb(exif: bytes) -> bool:
    """Return whether EXIF alone says Adobe RGB, as cameras do by DCF 2.0's "R03" (Exif 2.32, annex F)."""
    order, tiff = _split(exif)
    for entry in _entries(order, tiff, 4):
        if entry.tag != _EXIF_IFD:
            continue
        inner = {each.tag: each for each in _entries(order, entry.field, 0, tiff)}
        space = inner.get(_COLOR_SPACE)
        if space is None or (value := _short(order, space)) == 1:
            return False
        # 2 is no value of the standard's: older cameras and editors write it.
        interoperability = inner.get(_INTEROPERABILITY_IFD)
        return value == 2 or (
            interoperability is not None
            and any(
                each.tag == 1 and each.kind == _ASCII and each.field[:3] == b"R03"
                for each in _entries(order, interoperability.field, 0, tiff)
            )
        )
    return False


def is_raw(tiff: bytes) -> bool:
    """Return whether the beginning of a TIFF file says that it is a camera's RAW picture.

    Such a file is a DNG, or shows a thumbnail first and has its picture in a directory below.
    """
    order, _ = _split(tiff)
    tags = {entry.tag: entry for entry in _entries(order, tiff, 4)}
    if _DNG_VERSION in tags:
        return True
    thumbnail = tags.get(_NEW_SUBFILE_TYPE)
    return _SUB_IFDS in tags and thumbnail is not None and 1 in thumbnail.field


def _split(exif: bytes) -> tuple[str, bytes]:
    # Some blocks end with their last value, of two bytes in a field of four.
    tiff = exif.removeprefix(b"Exif\0\0") + bytes(2)
    return _BYTE_ORDERS.get(tiff[:4], ""), tiff


def _short(order: str, entry: _Entry) -> int | None:
    if (entry.kind, entry.count) != (_SHORT, 1):
        return None
    return int(struct.unpack_from(f"{order}H", entry.field)[0])


def _entries(order: str, offset_in: bytes, at: int, tiff: bytes | None = None) -> Iterator[_Entry]:
    """Yield a directory's entries as far as they can be read; its offset stands at `at` in `offset_in`."""
    tiff = offset_in if tiff is None else tiff
    if not order:
        return
    try:
        (directory,) = struct.unpack_from(f"{order}I", offset_in, at)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            yield _Entry(*struct.unpack_from(f"{order}HHI4s", tiff, directory + 2 + 12 * entry))
    except struct.error:
        return
