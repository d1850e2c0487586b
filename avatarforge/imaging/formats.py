"""Tells kinds of files by their first bytes, never by their names."""

import re
from dataclasses import dataclass
from enum import StrEnum

from avatarforge.imaging.exif import is_raw

HEAD_BYTES = 4096
"""How much of a file's beginning tells what it is."""


class PhotoFormat(StrEnum):
    """The formats that are taken, by Pillow's names."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    GIF = "GIF"
    HEIF = "HEIF"
    AVIF = "AVIF"
    TIFF = "TIFF"
    BMP = "BMP"


PHOTO_ENDINGS = {
    PhotoFormat.JPEG: (".jpg", ".jpeg"),
    PhotoFormat.PNG: (".png",),
    PhotoFormat.WEBP: (".webp",),
    PhotoFormat.GIF: (".gif",),
    PhotoFormat.HEIF: (".heic", ".heif"),
    PhotoFormat.AVIF: (".avif",),
    PhotoFormat.TIFF: (".tif", ".tiff"),
    PhotoFormat.BMP: (".bmp",),
}
"""By which photos are found in a folder; what a file is tells its content alone."""


@dataclass(frozen=True, slots=True)
class UnsupportedFormat:
    """A format that people do have, and that is not taken."""

    kind: str
    """With its article: "a PDF"."""
    advice: str


_RAW = "Send the JPEG or HEIC that the camera makes of it, or export one."
_EXPORT = "Export the picture as JPEG or PNG."
_STILL = "Send the still picture, as JPEG or HEIC."

_PHOTOS = (
    (re.compile(rb"\xff\xd8\xff"), PhotoFormat.JPEG),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PhotoFormat.PNG),
    (re.compile(rb"GIF8[79]a"), PhotoFormat.GIF),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), PhotoFormat.WEBP),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), PhotoFormat.BMP),
)
_UNSUPPORTED = (
    (rb"%PDF", "a PDF", "Send a picture of the page, as JPEG or PNG."),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", _EXPORT),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _EXPORT),
    (rb"8BPS", "a Photoshop document (PSD)", _EXPORT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing", _EXPORT),
    (rb"\0\0\x01\0[^\0]", "an icon (ICO)", _EXPORT),
    (
        rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b",
        "a drawing (SVG)",
        _EXPORT,
    ),
    (rb"II\*\0....CR", "a RAW picture (CR2)", _RAW),
    (rb"....ftypcrx ", "a RAW picture (CR3)", _RAW),
    (rb"FUJIFILMCCD-RAW", "a RAW picture (RAF)", _RAW),
    (rb"IIU\0", "a RAW picture (RW2)", _RAW),
    (rb"IIR[OS]|MMOR", "a RAW picture (ORF)", _RAW),
    (rb"FOVb", "a RAW picture (X3F)", _RAW),
    (rb"....(ftypqt  |moov|mdat|wide|pnot)", "a Live Photo's video (MOV)", _STILL),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video", _STILL),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "an archive", "Unpack it and send one of its pictures."),
)
_COMPILED = tuple(
    (re.compile(pattern, re.DOTALL), UnsupportedFormat(kind, advice))
    for pattern, kind, advice in _UNSUPPORTED
)
_HEIF_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"mif2", b"msf1", b"miaf", b"jpeg", b"jpgs"),
}


def detect_format(head: bytes) -> PhotoFormat | UnsupportedFormat | None:
    """Return the format of a file with these first `HEAD_BYTES`; `None` if it is not known."""
    for pattern, photo in _PHOTOS:
        if pattern.match(head):
            return photo
    if head[4:8] == b"ftyp" and (brand := _detect_brand(head)) is not None:
        return brand
    for pattern, unsupported in _COMPILED:
        if pattern.match(head):
            return unsupported
    if head[:4] in (b"II*\0", b"MM\0*"):
        return UnsupportedFormat("a RAW picture (DNG)", _RAW) if is_raw(head) else PhotoFormat.TIFF
    return None


def _detect_brand(head: bytes) -> PhotoFormat | None:
    """Return the format that an ISO media file names itself (ISO/IEC 14496-12, section 4.3)."""
    size = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)), 4))]
    if b"avif" in brands or b"avis" in brands:
        return PhotoFormat.AVIF
    return PhotoFormat.HEIF if brands[0] in _HEIF_BRANDS or b"mif1" in brands[1:] else None
