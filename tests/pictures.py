"""Test pictures of each kind, as the bytes of a file.

All show the same: a red, a green, a blue and a white quarter (from the top left, row by row), so that a
wrong turn, channel or palette is seen at once.
"""

import random
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

QUARTERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
SECRET = b"GPS 48.8584N 2.2945E"
"""What may not be found in a cleaned picture."""

# The turn that a camera makes where EXIF then says how to undo it.
_TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """The picture itself, RGB."""
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate(QUARTERS):
        left, top = number % 2 * (width // 2), number // 2 * (height // 2)
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


def turned(orientation: int, image: Image.Image | None = None) -> Image.Image:
    """The picture as a camera stores it that then says this orientation."""
    image, turn = image or quarters(), _TURNED[orientation]
    return image if turn is None else image.transpose(turn)


def read_quarters(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of each quarter, as RGB."""
    seen = image.convert("RGB")
    at = [(x * image.width // 4, y * image.height // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(np.asarray(seen)[y, x].tolist()) for x, y in at]


def photo(width: int = 1000, height: int = 1000, size: int = 200_000, **options: Any) -> bytes:
    """A JPEG like a camera's, of about `size` bytes: smooth colours under a little noise."""
    numbers = np.random.default_rng(1)
    coarse = numbers.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    noise = numbers.integers(0, 255, (height, width, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image = Image.blend(smooth, Image.fromarray(noise), 0.05)
    low, high = 5, 98
    while low < high:
        quality = (low + high + 1) // 2
        low, high = (
            (quality, high) if len(saved(image, "JPEG", quality=quality)) <= size else (low, quality - 1)
        )
    return saved(image, "JPEG", quality=low, **options)


def jpeg(image: Image.Image | None = None, orientation: int = 1, **options: Any) -> bytes:
    """A JPEG that shows the quarters upright once its orientation is applied."""
    image = turned(orientation, image)
    if orientation != 1:
        options["exif"] = exif(orientation)
    return saved(image, "JPEG", quality=95, subsampling=0, **options)


def jpeg_with_everything(orientation: int = 6) -> bytes:
    """A JPEG with GPS position, thumbnail, XMP, IPTC, comment, private segments, a film behind its end."""
    bare = jpeg(orientation=orientation)
    bare = bare[:2] + bare[2 + _first_segment(bare) :] if orientation == 1 else _without_exif(bare)
    photoshop = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HxxI", 0x0404, len(SECRET)) + SECRET
    segments = [
        segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\2\2" + SECRET[:12]),
        segment(0xE0, b"JFXX\0\x10" + SECRET),
        segment(0xE1, exif(orientation, SECRET)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + SECRET),
        segment(0xE2, b"MPF\0" + SECRET),
        segment(0xEB, SECRET),
        segment(0xED, photoshop),
        segment(0xFE, SECRET),
    ]
    return bare[:2] + b"".join(segments) + bare[2:] + b"ftypmp42" + SECRET * 100 + b"\xff\xd9"


def mpo() -> bytes:
    """A camera's picture with a second one (a depth map, a left eye) behind it."""
    second = Image.new("RGB", (96, 64), (1, 2, 3))
    return saved(quarters(), "MPO", save_all=True, append_images=[second], quality=95, subsampling=0)


def cmyk_jpeg(profile: bytes | None = None) -> bytes:
    """A printer's JPEG with Adobe's inverted inks."""
    return saved(quarters().convert("CMYK"), "JPEG", quality=95, icc_profile=profile)


def cmyk_jpeg_without_adobe() -> bytes:
    """The same without Adobe's segment: every reader takes the inks as inverted all the same."""
    data = cmyk_jpeg()
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 16 :]


def png(image: Image.Image | None = None, **options: Any) -> bytes:
    return saved(image or quarters(), "PNG", **options)


def png_with_everything() -> bytes:
    """A PNG with EXIF (turned), XMP and text."""
    return (
        _with_chunks(
            png(quarters().transpose(Image.Transpose.ROTATE_90), exif=exif(6, SECRET)),
            (b"tEXt", b"Comment\0" + SECRET),
            (b"zTXt", b"Author\0\0" + zlib.compress(SECRET, 0)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta>" + SECRET),
            (b"tIME", bytes(7)),
        )
        + SECRET
    )


def png_16_bit_grey() -> bytes:
    """Greys of 16 bits: left to right 0, 16384, 32768, 65535."""
    grey = np.repeat(np.array([0, 16384, 32768, 65535], dtype=np.uint16), 16)
    return saved(Image.fromarray(np.tile(grey, (64, 1))), "PNG")


def png_16_bit_rgb() -> bytes:
    """The quarters with 16 bits a channel, written by hand: Pillow writes no such file."""
    wide = np.asarray(quarters()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    return png_of(96, 64, zlib.compress(rows), depth=16, colour=2)


def png_palette(*, transparent: bool = False) -> bytes:
    """The quarters by palette; `transparent`: the white one is a hole."""
    image = quarters().quantize(8)
    if not transparent:
        return saved(image, "PNG")
    return saved(image, "PNG", transparency=np.asarray(image)[-1, -1].item())


def png_alpha() -> bytes:
    """The quarters with the blue one fully and the green one half transparent."""
    image = quarters().convert("RGBA")
    alpha = np.full((64, 96), 255, dtype=np.uint8)
    alpha[32:, :48] = 0
    alpha[:32, 48:] = 128
    image.putalpha(Image.fromarray(alpha))
    return saved(image, "PNG")


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A small file that claims many black pixels: one bit each, which packs a thousandfold."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return png_of(width, height, packed, depth=1, colour=0)


def webp(image: Image.Image | None = None, **options: Any) -> bytes:
    return saved(image or quarters(), "WEBP", **{"lossless": True, **options})


def animated(kind: str) -> bytes:
    """A GIF, WebP or PNG whose first frame has the quarters, the second nothing of them."""
    options = {"lossless": True} if kind == "WEBP" else {}
    second = Image.new("RGB", (96, 64), (9, 9, 9))
    return saved(quarters(), kind, save_all=True, append_images=[second], duration=50, **options)


def gif(image: Image.Image | None = None, **options: Any) -> bytes:
    return saved(image or quarters(), "GIF", **options)


def gif_bomb() -> bytes:
    """A few bytes: a small screen, and a first frame of 65,535 x 65,535 that is to be cleared."""
    clearing = b"!\xf9\x04\x08\0\0\0\0"
    frame = b"," + struct.pack("<4HB", 0, 0, 65535, 65535, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 96, 64, 0, 0, 0) + clearing + frame + b"\x02\x02\x4c\x01\0;"


def text() -> bytes:
    return b"This is no picture, whatever its name says.\n" * 20


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def exif(orientation: int, description: bytes = b"") -> bytes:
    """An EXIF block with an orientation, and a GPS position if there is a description."""
    block = Image.Exif()
    block[0x0112] = orientation
    if description:
        block[0x010E] = description.decode()
        block.get_ifd(0x8825)[0x0001] = "N"
        block.get_ifd(0x8825)[0x0002] = (48.0, 51.0, 30.24)
    return block.tobytes()


def swapped_profile() -> bytes:
    """A colour profile that tells sRGB from the way this computer shows it: linear light (gamma 1)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = struct.unpack_from(">I", profile, 128)[0]
    tags = [struct.unpack_from(">4sII", profile, 132 + 12 * entry) for entry in range(entries)]
    places = {name: (offset, 132 + 12 * entry) for entry, (name, offset, _) in enumerate(tags)}
    # Red's primary under green's name, and the other way round.
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    struct.pack_into(">I", profile, red[1] + 4, green[0])
    struct.pack_into(">I", profile, green[1] + 4, red[0])
    return bytes(profile)


def huge_profile(place: str) -> bytes:
    """`swapped_profile` with three megabytes more, which are within its length or not."""
    profile = swapped_profile() + bytes(3 * 1024 * 1024)
    return profile if place == "behind the profile" else len(profile).to_bytes(4, "big") + profile[4:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def png_of(width: int, height: int, packed: bytes, *, depth: int, colour: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """The PNG with these chunks behind its header."""
    behind_header = 8 + 25
    return data[:behind_header] + b"".join(chunk(*one) for one in chunks) + data[behind_header:]


def _without_exif(data: bytes) -> bytes:
    start = data.index(b"\xff\xe1")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def _first_segment(data: bytes) -> int:
    return 2 + int.from_bytes(data[4:6], "big")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of one of Pillow's formats."""
    file = BytesIO()
    image.save(file, kind, **{name: value for name, value in options.items() if value is not None})
    return file.getvalue()
