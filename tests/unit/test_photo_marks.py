"""Marks in every place of a file that is no pixel: none is in what is stored, in the square or the avatar."""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from avatarforge.domain.jobs import GenerationParameters, ImageFormat
from avatarforge.imaging import jpeg
from avatarforge.imaging.crop import cut
from avatarforge.imaging.decode import load_upright
from avatarforge.imaging.icc import SRGB, build
from avatarforge.imaging.provenance import ContentCredentials
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings
from tests import pictures
from tests.pictures import chunk, segment
from tests.unit.test_photo_cases import FOLDER

MARK = b"MARK GPS 52.5N 13.4E serial 0815"


def marked_profile(place: str) -> bytes:
    """A profile with the mark in a private tag (a monitor's `mmod`) or somewhere else."""
    profile = bytearray(build(SRGB, (1.8,)))
    if place == "header":
        profile[48:56], profile[80:84] = MARK[:8], MARK[:4]
        profile[100:128] = MARK[:28]
    if place == "behind":
        return bytes(profile) + MARK
    if place in {"mmod", "desc", "gap"}:
        count = struct.unpack_from(">I", profile, 128)[0]
        end = 132 + 12 * count
        grown = profile[:132]
        for entry in range(count):
            name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
            size = len(MARK) if place == "desc" and name == b"desc" else size
            offset = len(profile) + 12 if place == "desc" and name == b"desc" else offset + 12
            grown += struct.pack(">4sII", name, offset, size)
        private = b"mmod" if place == "mmod" else b"cprt"
        grown += struct.pack(">4sII", private, len(profile) + 12, len(MARK)) + profile[end:] + MARK
        struct.pack_into(">I", grown, 128, count + 1)
        struct.pack_into(">I", grown, 0, len(grown))
        return bytes(grown)
    return bytes(profile)


PROFILES = {f"ICC {place}": marked_profile(place) for place in ("mmod", "desc", "gap", "behind", "header")}
XMP = b"<x:xmpmeta>" + MARK + b"</x:xmpmeta>"
EXIF = pictures.exif(1, MARK)
THUMBNAIL = EXIF + pictures.jpeg(pictures.quarters(32, 32))[:-2] + MARK + b"\xff\xd9"
PHOTO = pictures.photo(128, 128, 9000, restart_marker_blocks=8)
PROGRESSIVE = pictures.photo(128, 128, 9000, progressive=True)


def jpegs() -> Iterator[tuple[str, bytes]]:
    photoshop = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HxxI", 0x0404, len(MARK)) + MARK
    bodies = {
        "EXIF": (0xE1, EXIF),
        "EXIF thumbnail": (0xE1, THUMBNAIL),
        "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        "extended XMP": (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + XMP),
        "IPTC": (0xED, photoshop),
        "comment": (0xFE, MARK),
        "JFIF thumbnail": (0xE0, b"JFIF\0\1\1\0\0\1\0\1\3\3" + MARK[:27]),
        "JFXX": (0xE0, b"JFXX\0\x10" + MARK),
        "MPF": (0xE2, b"MPF\0" + MARK),
        "FlashPix": (0xE2, b"FPXR\0" + MARK),
        "Adobe": (0xEE, b"Adobe\0d\0\0\0\0\1" + MARK),
        "C2PA": (0xEB, b"JP\0\1\0\0\0\1" + MARK),
        **{f"APP{number}": (0xE0 + number, MARK) for number in (3, 4, 5, 6, 7, 8, 9, 10, 12, 15)},
        "lines (DNL)": (0xDC, b"\0\x80" + MARK),
        "reserved": (0xF0, MARK),
    }
    for name, (marker, body) in bodies.items():
        yield name, PHOTO[:2] + segment(marker, body) + PHOTO[2:]
    for name, profile in PROFILES.items():
        yield name, PHOTO[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + profile) + PHOTO[2:]
    yield "behind the end", PHOTO + MARK
    yield "in place of the end", PHOTO[:-2] + MARK
    yield "before the end", PHOTO[:-2] + MARK + b"\xff\xd9"
    yield "a gap between segments", PHOTO[:20] + MARK + PHOTO[20:]
    restart = PHOTO.index(b"\xff\xd2")
    yield "before a restart", PHOTO[:restart] + MARK + PHOTO[restart:]
    scans = jpeg.strip_metadata(PROGRESSIVE).scans
    for number, (_, end) in enumerate(scans):
        yield f"behind scan {number}", PROGRESSIVE[:end] + MARK + PROGRESSIVE[end:]
    yield "behind a second image", PHOTO + pictures.jpeg()[:-2] + MARK + b"\xff\xd9"


def pngs() -> Iterator[tuple[str, bytes]]:
    bare = pictures.png()
    bodies = {
        "tEXt": b"Comment\0" + MARK,
        "zTXt": b"Comment\0\0" + zlib.compress(MARK, 0),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP,
        "eXIf": EXIF.removeprefix(b"Exif\0\0"),
        "pHYs": MARK,
        "tIME": MARK,
        "sPLT": MARK,
        "hIST": MARK,
        "bKGD": MARK,
        "sBIT": MARK,
        "gIFx": MARK,
        "caBX": MARK,
        "prVt": MARK,
        "acTL": MARK,
        "fdAT": MARK,
    }
    for name, body in bodies.items():
        for place in (33, len(bare) - 12):
            yield f"{name} at {place}", bare[:place] + chunk(name.encode(), body) + bare[place:]
    for name, profile in PROFILES.items():
        yield name, bare[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(profile, 0)) + bare[33:]
    yield (
        "a profile's name",
        bare[:33] + chunk(b"iCCP", MARK + b"\0\0" + zlib.compress(build(SRGB, (1.8,)))) + bare[33:],
    )
    yield "behind the end", bare + MARK
    yield "in the end", bare[:-12] + chunk(b"IEND", MARK)
    start = bare.index(b"IDAT") - 4
    length = int.from_bytes(bare[start : start + 4], "big")
    packed = bare[start + 8 : start + 8 + length]
    yield (
        "behind the packed pixels",
        bare[:start] + chunk(b"IDAT", packed + MARK) + bare[start + 12 + length :],
    )
    yield "under alpha 0", pictures.saved(hidden_text(), "PNG")


def hidden_text() -> Image.Image:
    """An image whose transparent pixels have the mark as their colours."""
    pixels = np.full((64, 96, 4), 255, dtype=np.uint8)
    pixels[20:40, :, 3] = 0
    pixels[20, :32, 0] = np.frombuffer(MARK, dtype=np.uint8)
    pixels[21, :10, :3] = np.frombuffer(MARK[:30], dtype=np.uint8).reshape(10, 3)
    return Image.fromarray(pixels)


def webps() -> Iterator[tuple[str, bytes]]:
    for lossless in (True, False):
        kind = "lossless" if lossless else "lossy"
        options: dict[str, Any] = {
            "EXIF": {"exif": EXIF},
            "XMP": {"xmp": XMP},
            "thumbnail": {"exif": THUMBNAIL},
        }
        options |= {name: {"icc_profile": profile} for name, profile in PROFILES.items()}
        for name, option in options.items():
            yield f"{kind}, {name}", pictures.saved(pictures.quarters(), "WEBP", lossless=lossless, **option)
        bare = pictures.saved(pictures.quarters(), "WEBP", lossless=lossless, exif=EXIF)
        # The extended header ends at 30, the pixels where the EXIF block begins.
        for place, at in {"first": 30, "behind the pixels": bare.index(b"EXIF"), "last": len(bare)}.items():
            for name in (b"XMP ", b"META", b"JUNK", b"C2PA", b"ICMT", b"mark"):
                grown = bytearray(bare[:at] + name + struct.pack("<I", len(MARK)) + MARK + bare[at:])
                struct.pack_into("<I", grown, 4, len(grown) - 8)
                yield f"{kind}, {name.decode()} {place}", bytes(grown)
        yield f"{kind}, behind the end", bare + MARK
    yield "under alpha 0", pictures.saved(hidden_text(), "WEBP", lossless=True, exact=True)
    second = hidden_text()
    frames = {"save_all": True, "append_images": [second], "lossless": True, "exact": True}
    yield "in a second frame", pictures.saved(pictures.quarters(), "WEBP", **frames)


def isos(photo: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of boxes (AVIF and HEIC), with boxes more within and behind `meta`, and items of other types."""
    meta = photo.index(b"meta") - 4
    end = meta + int.from_bytes(photo[meta : meta + 4], "big")
    places = {"behind ftyp": meta, "first in meta": end, "behind meta": end, "last": len(photo)}
    names = (b"free", b"skip", b"uuid", b"udta", b"mdat", b"moof", b"jumb", b"Exif", b"GPS ")
    for place, at in places.items():
        for name in names:
            box = struct.pack(">I4s", 8 + len(MARK), name) + MARK
            yield (
                f"{name.decode()} {place}",
                insert(photo, box, at, meta if place == "first in meta" else None),
            )
    yield "behind the end", photo + MARK
    handler = photo.index(b"hdlr") - 4
    name_at = handler + int.from_bytes(photo[handler : handler + 4], "big") - 1
    grown = bytearray(insert(photo, MARK, name_at, meta))
    struct.pack_into(">I", grown, handler, name_at + 1 - handler + len(MARK))
    yield "the handler's name", bytes(grown)


def insert(photo: bytes, extra: bytes, at: int, within: int | None) -> bytes:
    """Insert bytes before the pixels of a file of boxes, in the box at `within` if one is named."""
    grown = bytearray(photo[:at] + extra + photo[at:])
    if within is not None:
        struct.pack_into(">I", grown, within, int.from_bytes(photo[within : within + 4], "big") + len(extra))
    if at == len(photo):
        return bytes(grown)
    place = grown.index(b"iloc") + 4
    assert grown[place : place + 2] == b"\0\0", "the other versions have fields more"
    assert grown[place + 4] == 0x44, "offsets and lengths of four bytes"
    base_size = grown[place + 5] >> 4
    (count,) = struct.unpack_from(">H", grown, place + 6)
    for item in range(count):
        # An id, a reference, a base if there is one, the number of extents (one): offset and length.
        offset_at = place + 8 + (14 + base_size) * item + (4 if base_size else 6)
        struct.pack_into(
            ">I", grown, offset_at, *(len(extra) + one for one in struct.unpack_from(">I", grown, offset_at))
        )
    return bytes(grown)


def avifs() -> Iterator[tuple[str, bytes]]:
    options: dict[str, Any] = {"EXIF": {"exif": EXIF}, "XMP": {"xmp": XMP}, "thumbnail": {"exif": THUMBNAIL}}
    options |= {name: {"icc_profile": profile} for name, profile in PROFILES.items()}
    for name, option in options.items():
        yield name, pictures.saved(pictures.quarters(), "AVIF", **option)
    yield from isos(pictures.saved(pictures.quarters(), "AVIF"))


def heics() -> Iterator[tuple[str, bytes]]:
    """In `grid-depth.heic` the items that are no pixels are overwritten."""
    items = (FOLDER / "grid-depth.heic").read_bytes()
    for name, old in {"EXIF": b"SECRET\0", "XMP": b"<x:xmpmeta>SECRET</x:xmpmeta>"}.items():
        assert items.count(old) == 1
        mark = MARK[: len(old)]
        yield name, items.replace(old, mark)
    profile = (FOLDER / "p3-icc.heic").read_bytes()
    header = profile.index(b"acsp") + 44
    yield "ICC header", profile[:header] + MARK[:28] + profile[header + 28 :]
    yield from isos((FOLDER / "iphone.heic").read_bytes())


def gifs() -> Iterator[tuple[str, bytes]]:
    bare = pictures.gif()
    first = bare.index(b",\0\0\0\0")
    block = bytes([len(MARK)]) + MARK + b"\0"
    extensions = {
        "comment": b"!\xfe" + block,
        "XMP": b"!\xff\x0bXMP DataXMP" + block,
        "ICC": b"!\xff\x0bICCRGBG1012" + block,
        "loops": b"!\xff\x0bNETSCAPE2.0" + block,
        "EXIF": b"!\xff\x0bMAGICKEXIF0" + block,
        "IPTC": b"!\xff\x0bMGK8BIM0000" + block,
        "an application": b"!\xff\x0bSECRETS 1.0" + block,
        "an application's name": b"!\xff\x0b" + MARK[:11] + b"\0",
        "text": b"!\x01\x0c" + bytes(12) + block,
        "text's grid": b"!\x01\x0c" + MARK[:12] + b"\0",
        **{f"extension {label:#x}": bytes([0x21, label]) + block for label in (0, 0x42, 0x7F, 0xCE)},
    }
    for name, extension in extensions.items():
        for place, at in {"before": first, "behind": len(bare) - 1, "last": len(bare)}.items():
            yield f"{name} {place}", bare[:at] + extension + bare[at:]
    yield "behind the end", bare + MARK
    colours = bytearray(bare)
    # Colours that no pixel has; the picture needs four.
    colours[13 + 3 * 4 : 13 + 3 * 4] = MARK + bytes(3 * 12 - len(MARK))
    colours[10] = 0xF3
    yield "unused colours", bytes(colours)
    yield (
        "in a second frame",
        pictures.saved(
            pictures.quarters(), "GIF", save_all=True, append_images=[hidden_text().convert("RGB")]
        ),
    )


def tiffs() -> Iterator[tuple[str, bytes]]:
    texts = (
        269,
        270,
        271,
        272,
        285,
        305,
        306,
        315,
        316,
        333,
        337,
        33432,
        36867,
        42032,
        42033,
        42036,
        50708,
        50735,
    )
    raw = (
        347,
        700,
        33723,
        34377,
        37500,
        37510,
        37724,
        40091,
        40092,
        40093,
        40094,
        40095,
        50341,
        50831,
        59932,
        65000,
    )
    for tag in (*texts, *raw):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags.tagtype[tag] = 2 if tag in texts else 7
        tags[tag] = MARK.decode() if tag in texts else MARK
        yield f"tag {tag}", pictures.saved(pictures.quarters(), "TIFF", tiffinfo=tags)
    for name, profile in PROFILES.items():
        yield name, pictures.saved(pictures.quarters(), "TIFF", icc_profile=profile)
    bare = pictures.saved(pictures.quarters(), "TIFF")
    yield "behind the end", bare + MARK
    yield (
        "a second page",
        pictures.saved(pictures.quarters(), "TIFF", save_all=True, append_images=[hidden_text()]),
    )
    yield "under alpha 0", pictures.saved(hidden_text(), "TIFF")


def bmps() -> Iterator[tuple[str, bytes]]:
    bare = pictures.saved(pictures.quarters(), "BMP")
    pixels = bare[54:]

    def build(header: bytes, between: bytes = b"", behind: bytes = b"", reserved: bytes = bytes(4)) -> bytes:
        start = 14 + len(header) + len(between)
        size = start + len(pixels) + len(behind)
        return b"BM" + struct.pack("<I4sI", size, reserved, start) + header + between + pixels + behind

    core = struct.pack("<IHHHH", 12, 96, 64, 1, 24)
    yield "12, gap", build(core, between=MARK)
    yield "12, behind", build(core, behind=MARK)
    yield "12, gap and behind", build(core, between=MARK, behind=MARK)
    for size in (40, 52, 56, 64, 108, 124):
        header = struct.pack("<I", size) + bare[18:54] + bytes(size - 40)
        header = (
            header[:40] + struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF) + header[52:] if size > 40 else header
        )
        yield f"{size}, gap", build(header, between=MARK)
        yield f"{size}, behind", build(header, behind=MARK)
        yield f"{size}, far behind", build(header, behind=bytes(5000) + MARK)
        yield f"{size}, gap and reserved", build(header, between=MARK, reserved=MARK[:4])
        yield f"{size}, resolution", build(header[:24] + MARK[:8] + header[32:])
        if size > 64:
            yield f"{size}, endpoints", build(header[:60] + MARK + header[60 + len(MARK) :])
        if size == 124:
            for name, profile in PROFILES.items():
                embedded = (
                    header[:56]
                    + b"DEBM"
                    + header[60:112]
                    + struct.pack("<II", size + len(pixels), len(profile))
                )
                yield name, build(embedded + bytes(4), behind=profile)


KINDS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "JPEG": jpegs,
    "PNG": pngs,
    "WebP": webps,
    "AVIF": avifs,
    "HEIC": heics,
    "GIF": gifs,
    "TIFF": tiffs,
    "BMP": bmps,
}
FILES = [(f"{kind} {name}", content) for kind, files in KINDS.items() for name, content in files()]


def traces(content: bytes) -> list[bytes]:
    """The beginnings of the mark that are found, in the file and in its unpacked pixels."""
    places = [content]
    if content.startswith(b"\x89PNG"):
        with Image.open(BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGBA"))
        places += [pixels.tobytes(), pixels[..., :3].tobytes(), pixels[..., 0].tobytes()]
    return [MARK[:8] for place in places if MARK[:8] in place]


@pytest.mark.parametrize(("name", "content"), FILES, ids=[name for name, _ in FILES])
def test_no_mark_is_left(name: str, content: bytes) -> None:
    stored = clean_photo(BytesIO(content), name, UploadSettings()).content.read()
    for kept in (stored, *make_avatars(stored)):
        assert traces(kept) == []


@cache
def make_avatars(stored: bytes) -> list[bytes]:
    """The square as an avatar in each format. Cached: what is left of most files is the same."""
    square, _ = cut(load_upright(stored), (64, 64), GenerationParameters(seed=1))
    return [ContentCredentials().encode(square, image_format) for image_format in ImageFormat]


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_forty_places_in_each_format_and_the_mark_is_in_each_file(kind: str) -> None:
    files = [(name, content) for name, content in FILES if name.startswith(kind)]
    assert len(files) >= 40
    unpacked = ("alpha 0", "second frame", "second page", "zTXt")
    assert [name for name, content in files if MARK[:4] not in content and not name.endswith(unpacked)] == []
