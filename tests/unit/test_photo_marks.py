"""Marks in every place of a file that is no pixel: none is in what is stored, in the square or the avatar."""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

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
PHOTO = pictures.photo(128, 128, 9000, restart_marker_blocks=8)
PROGRESSIVE = pictures.photo(128, 128, 9000, progressive=True)


def jpegs() -> Iterator[tuple[str, bytes]]:
    photoshop = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HxxI", 0x0404, len(MARK)) + MARK
    thumbnail = pictures.jpeg(pictures.quarters(32, 32))[:-2] + MARK + b"\xff\xd9"
    bodies = {
        "EXIF": (0xE1, EXIF),
        "EXIF thumbnail": (0xE1, EXIF + thumbnail),
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


def others() -> Iterator[tuple[str, bytes]]:
    for kind in ("WEBP", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        yield f"{kind} EXIF", pictures.saved(pictures.quarters(), kind, exif=EXIF, **options)
        yield f"{kind} XMP", pictures.saved(pictures.quarters(), kind, xmp=XMP, **options)
        for name, profile in PROFILES.items():
            yield f"{kind} {name}", pictures.saved(pictures.quarters(), kind, icc_profile=profile, **options)
        yield f"{kind} behind the end", pictures.saved(pictures.quarters(), kind, **options) + MARK
    yield "WEBP under alpha 0", pictures.saved(hidden_text(), "WEBP", lossless=True, exact=True)
    yield "GIF comment", pictures.gif(comment=MARK)
    yield "GIF behind the end", pictures.gif() + MARK
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315], tags[33432] = (MARK.decode(),) * 3
    yield (
        "TIFF tags",
        pictures.saved(pictures.quarters(), "TIFF", tiffinfo=tags, icc_profile=PROFILES["ICC mmod"]),
    )
    heic = (FOLDER / "iphone.heic").read_bytes()
    for box in (b"free", b"uuid", b"mdat"):
        yield f"HEIC {box.decode()}", heic + struct.pack(">I4s", 8 + len(MARK), box) + MARK
    yield "BMP behind the end", pictures.saved(pictures.quarters(), "BMP") + MARK


FILES = [
    *((f"JPEG {name}", content) for name, content in jpegs()),
    *((f"PNG {name}", content) for name, content in pngs()),
    *others(),
]


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
    square, _ = cut(load_upright(stored), 64, GenerationParameters(seed=1))
    encode: Callable[[Image.Image, ImageFormat], bytes] = ContentCredentials().encode
    for kept in (stored, *(encode(square, image_format) for image_format in ImageFormat)):
        assert traces(kept) == []


def test_there_are_forty_places_in_jpegs_and_pngs() -> None:
    for kind in ("JPEG", "PNG"):
        assert len([name for name, _ in FILES if name.startswith(kind)]) >= 40
