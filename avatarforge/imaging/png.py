"""Picks a PNG's pixels and colours out of its chunks (PNG, third edition); all other chunks are passed over.

So no text, date or checksum decides whether a picture is shown, and none is left of them.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from avatarforge.imaging import icc
from avatarforge.imaging.colour import ColourCodes
from avatarforge.imaging.exif import read_orientation
from avatarforge.imaging.ranges import Piece, Source, open_pieces

MAX_CHUNKS = 100_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_SMALL = 1 << 20
"""Bytes of a palette, a transparency or an EXIF block that are read at most."""


class BrokenPng(ValueError):
    """The text completes "it cannot be decoded to its end (…)"."""


@dataclass(slots=True)
class StrippedPng:
    """The picture without anything else."""

    width: int
    height: int
    pieces: list[Piece] = field(default_factory=list)
    """A file of the chunks that decoding needs, with right checksums."""
    orientation: int = 1
    profile: bytes | None = None
    """An ICC profile: the file's own, or one made of its gamma."""
    codes: ColourCodes | None = None

    def repack(self) -> bytes:
        """Return the file with its pixels packed anew, as far as they can be unpacked.

        What is wrong may be their own checksum alone, which Pillow insists on, and viewers do not.
        """
        content, end = bytearray(self.pieces[0][0]), self.pieces[-1][0]
        unpacker, packer = zlib.decompressobj(wbits=-15), zlib.compressobj(level=1)
        packed = bytearray()
        for data in self._read_data():
            try:
                while data and not unpacker.eof:
                    packed += packer.compress(unpacker.decompress(data, _SMALL))
                    data = unpacker.unconsumed_tail
            except zlib.error:
                break
        content += _build_chunk(b"IDAT", bytes(packed + packer.flush()))
        return bytes(content + end)

    def _read_data(self) -> Iterator[bytes]:
        """Yield the packed pixels without the packing's own header of two bytes."""
        skipped = 0
        with open_pieces(self.pieces[1:-1]) as file:
            while head := file.read(8):
                data = file.read(int.from_bytes(head[:4], "big"))
                file.seek(4, io.SEEK_CUR)
                header = min(2 - skipped, len(data))
                skipped += header
                yield data[header:]


def strip_metadata(source: Source) -> StrippedPng:
    """Walk the chunks up to the end; what follows is ignored, and so is a missing end.

    Raises `BrokenPng` if there is no picture.
    """
    if source[12:16] != b"IHDR" or len(source) < 33:
        raise BrokenPng("its header is missing")
    header = source[16:29]
    found = StrippedPng(*struct.unpack(">II", header[:8]))
    colours: dict[bytes, bytes] = {}
    data: list[Piece] = []
    at = 33
    for _ in range(MAX_CHUNKS):
        length, name = int.from_bytes(source[at : at + 4], "big"), source[at + 4 : at + 8]
        end = min(at + 8 + length, len(source))
        if name == b"IEND" or len(name) < 4 or (data and not name.isalpha()):
            break
        if name == b"IDAT":
            _add_data(data, source, at, end)
        # Behind the pixels colours come too late.
        elif name in _COLOURS and name not in colours and (not data or name == b"eXIf"):
            colours[name] = source[at + 8 : min(end, at + 8 + _COLOURS[name])]
        at += 12 + length
    if not data:
        raise BrokenPng("it has no image data")
    before = _SIGNATURE + _build_chunk(b"IHDR", header)
    before += _build_chunk(b"PLTE", colours[b"PLTE"]) if b"PLTE" in colours else b""
    if _suits(header[9], colours.get(b"tRNS", b"")):
        before += _build_chunk(b"tRNS", colours[b"tRNS"])
    after = _build_chunk(b"IEND", b"")
    found.pieces = [(before, 0, len(before)), *data, (after, 0, len(after))]
    found.orientation = read_orientation(colours.get(b"eXIf", b""))
    _read_colours(found, colours)
    return found


_COLOURS = {
    b"PLTE": 768,
    b"tRNS": 256,
    b"eXIf": _SMALL,
    b"cICP": 4,
    b"iCCP": icc.MAX_BYTES,
    b"sRGB": 1,
    b"gAMA": 4,
    b"cHRM": 32,
}
"""The chunks that matter for how pixels look, and how much of each is read."""


def _add_data(data: list[Piece], source: Source, at: int, end: int) -> None:
    """Add a chunk of pixels, as far as it goes, with a checksum that is right."""
    with memoryview(source) as view:
        checksum = zlib.crc32(view[at + 4 : end]).to_bytes(4, "big")
    if source[end : end + 4] == checksum:
        start = data.pop()[1] if data and data[-1][0] is source and data[-1][2] == at else at
        data.append((source, start, end + 4))
        return
    length = (end - at - 8).to_bytes(4, "big")
    data.extend([(length, 0, 4), (source, at + 4, end), (checksum, 0, 4)])


def _build_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _suits(colour_type: int, transparency: bytes) -> bool:
    """Return whether the transparency has the length that its kind of picture asks for (section 11.3.1)."""
    sizes = {_GREY: range(2, 3), _RGB: range(6, 7), _PALETTE: range(1, 257)}
    return len(transparency) in sizes.get(colour_type, ())


def _read_colours(found: StrippedPng, chunks: dict[bytes, bytes]) -> None:
    """Read what the colours mean: the first of cICP, iCCP, sRGB, gAMA (section 4.3)."""
    codes = chunks.get(b"cICP", b"")
    # A PNG's colours are RGB (0), and of full range (1): Chromium, too, passes over other codes.
    if len(codes) == 4 and codes[2:] == b"\0\1":
        found.codes = ColourCodes(codes[0], codes[1])
        if found.codes.is_known:
            return
        found.codes = None
    profile = _unpack_profile(chunks.get(b"iCCP", b""))
    if profile is not None:
        found.profile = profile
    elif b"sRGB" not in chunks:
        found.profile = _build_profile(chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b""))


def _unpack_profile(chunk: bytes) -> bytes | None:
    name, _, rest = chunk[:80].partition(b"\0")
    try:
        profile = zlib.decompressobj().decompress(chunk[len(name) + 2 :], icc.MAX_BYTES) if rest else b""
    except zlib.error:
        return None
    return None if icc.get_colour_space(profile) is None else profile


def _build_profile(gamma: bytes, chromaticities: bytes) -> bytes | None:
    """Build the profile that gAMA and cHRM stand for; `None` for sRGB, which is the default."""
    value = int.from_bytes(gamma, "big") if len(gamma) == 4 else 0
    # Without primaries the reciprocal of 2.2 stands for sRGB, as in Chromium.
    if not value or (not chromaticities and 45_000 <= value <= 46_000):
        return None
    primaries = icc.SRGB
    if len(chromaticities) == 32:
        x, y, *others = (number / 100_000 for number in struct.unpack(">8i", chromaticities))
        primaries = (x, y, others[0], others[1], others[2], others[3], others[4], others[5])
    try:
        return icc.build(primaries, (100_000 / value,))
    except ValueError:
        return None
