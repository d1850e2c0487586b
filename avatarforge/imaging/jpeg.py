"""Strips the metadata from JPEG files by their segments alone: no pixel is decoded or encoded.

Segments as in ITU-T T.81, annex B; JFIF as in T.871; ICC profiles as in ICC.1, annex B.4.
"""

import hashlib
import io
import re
import struct
from dataclasses import dataclass, field

from PIL import Image

from avatarforge.imaging import icc
from avatarforge.imaging.decode import reduce_huge
from avatarforge.imaging.exif import is_adobe_rgb, read_orientation
from avatarforge.imaging.ranges import Piece, Source, open_pieces

DECODED_PROCESSES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Frames' markers of what libjpeg decodes: baseline, extended and progressive, Huffman or arithmetic."""
MAX_SEGMENTS = 4096
MAX_SCANS = 100
"""Progressive files have about ten; each scan costs a pass over all coefficients, however small it is."""

_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# DHT, DAC, DQT, DRI: what decoding needs beside frames and scans.
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
_SPACES = {1: (b"GRAY", b"RGB "), 3: (b"RGB ",), 4: (b"CMYK",)}
"""The colours that profiles of files with so many components may be for."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}

# Two bytes each and not more, so that a long run of 0xFF costs no more than any other bytes.
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_WINDOW = 1024 * 1024
_SAMPLE = 32 * 1024
_SAMPLE_ROWS = 32
_END = b"\xff\xd9"

_PROGRESSIVE = 0xC2
_WHOLE_SCANS = 2
"""After so many scans a progressive file has every place's mean colour, and its brightness roughly."""
TAIL = 8
"""Bytes at a scan's end that are looked at, and put to the test, when foreign bytes are searched there."""
_LONG_TAIL = 4096
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{16}")
_NO_TEXT = bytes({*range(0x20), *range(0x7F, 0x100)} - set(b"\t\n\r"))
_JUNK = b"\x6d" * 64, b"\x92" * 64, b""
"""Contents that a decoder makes different pixels of, wherever it still needs any."""
_STRIP = 256


class BrokenJpeg(ValueError):
    """The text completes "it cannot be decoded to its end (…)"."""


class ExcessiveJpeg(BrokenJpeg):
    """There is more in the file than any picture needs."""


@dataclass(slots=True)
class StrippedJpeg:
    """A JPEG file's first image without its metadata, as ranges of `source`."""

    source: Source
    width: int = 0
    height: int = 0
    """Pixels as stored, before the orientation."""
    orientation: int = 1
    process: int = 0
    """The frame's marker, from 0xC0 (baseline) to 0xCF."""
    components: int = 0
    bits: int = 8
    """Of a sample."""
    samples: int = 0
    """In all components together: each takes two bytes while a file of several scans is decoded."""
    head: bytes = b""
    """The rewritten segments: JFIF, orientation, Adobe's transform, colour profile."""
    profile: bytes | None = None
    """The file's own profile, if it could not be rebuilt: its colours must be converted."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Tables, frame and scans."""
    digest: bytes = b""
    """Of the pixels, once they were decoded."""
    frame: int = 0
    """Offset of the frame's marker in `source`."""
    scans: list[tuple[int, int]] = field(default_factory=list)
    """Each scan's entropy-coded data in `source`."""
    has_restarts: bool = False
    """Whether scans are divided by restart markers."""
    has_end: bool = False
    """Whether the walk came to the end marker. Otherwise the last scan may have anything behind it."""
    is_cut: bool = False
    """Whether the file has no end marker at all: its last scan may be cut off."""

    def open(self) -> io.BufferedReader | io.BytesIO:
        """Open the file without metadata. It may read `source`, which must stay open as long."""
        return open_pieces(self._pieces(self.ranges))

    def is_complete_without(self, start: int, end: int) -> bool:
        """Return whether the image is the same without this range of a scan, and whatever stands there.

        Decodes up to four times, one image at a time.
        """
        before, behind = self._split(start, end)
        self.digest = self.digest or self._compute_digest(self.ranges, b"", [])
        digests = {self.digest}
        try:
            for junk in _JUNK:
                digests.add(self._compute_digest(before, junk, behind))
                if len(digests) > 1:
                    return False
        except OSError:
            # The decoder came upon the junk.
            return False
        return True

    def trim(self, start: int, end: int) -> None:
        """Cut off what stands behind the entropy-coded data that begin at `start` and end before `end`.

        Bytes of less than `TAIL` are left: they tell nothing. Decodes some four times for each bit of the
        length of what is cut off.
        """
        needed, complete, step = start, end, TAIL
        while complete > needed:
            tried = max(needed, end - step)
            if not self.is_complete_without(tried, end):
                needed = complete if step == TAIL else tried + 1
                break
            complete, step = tried, step * 8
        while complete > needed:
            tried = (needed + complete) // 2
            if self.is_complete_without(tried, end):
                complete = tried
            else:
                needed = tried + 1
        before, behind = self._split(complete, end)
        self.ranges = before + behind

    def _split(self, start: int, end: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        before = [(begin, min(until, start)) for begin, until in self.ranges if begin < start]
        return before, [(max(begin, end), until) for begin, until in self.ranges if until > end]

    def _compute_digest(
        self, before: list[tuple[int, int]], junk: bytes, behind: list[tuple[int, int]]
    ) -> bytes:
        """Return a digest of the pixels with `junk` between the ranges. Raises Pillow's errors."""
        digest = hashlib.sha256()
        pieces = [*self._pieces(before)[:-1], (junk, 0, len(junk)), *self._pieces(behind)[1:]]
        with Image.open(open_pieces(pieces), formats=["JPEG"]) as image:
            reduce_huge(image)
            for top in range(0, image.height, _STRIP):
                digest.update(image.crop((0, top, image.width, min(top + _STRIP, image.height))).tobytes())
        return digest.digest()

    def find_suspicious_tails(self) -> list[tuple[int, int]]:
        """Return the scans, or their parts between restarts, that may end with foreign bytes: with text.

        It takes no decoding, so among them are ends of flat areas too.
        """
        source, tails = self.source, []
        for start, end in self.scans:
            for restart in _RESTART.finditer(source, start, end) if self.has_restarts else ():
                # There may be many restarts, so that more is asked for before them.
                if _is_text(source[max(start, restart.start() - 2 * TAIL) : restart.start()]):
                    tails.append((start, restart.start()))
                start = restart.end()
            if _is_text(source[max(start, end - TAIL) : end]) or _TEXT.search(
                source, max(start, end - _LONG_TAIL), end
            ):
                tails.append((start, end))
        return [(start, end) for start, end in tails if end - start >= TAIL]

    def _pieces(self, ranges: list[tuple[int, int]]) -> list[Piece]:
        kept: list[Piece] = [(self.source, *span) for span in ranges]
        return [(self.head, 0, len(self.head)), *kept, (_END, 0, 2)]

    def build_sample(self) -> bytes:
        """Build a file with the top of the image: quick to try a decoder on.

        It has the first 32 KiB of the first scan and a frame of at most `_SAMPLE_ROWS` rows: a decoder
        would paint the rows for which there are no data, at a cost that grows with their number.
        """
        until = self.scans[0][0] + _SAMPLE
        sample = bytearray(self.head)
        for start, end in self.ranges:
            if start <= self.frame < end:
                height_at = len(sample) + self.frame - start + 5
            if start < until:
                sample += self.source[start : min(end, until)]
        sample[height_at : height_at + 2] = min(self.height, _SAMPLE_ROWS).to_bytes(2, "big")
        return bytes(sample + _END)


def strip_metadata(source: Source) -> StrippedJpeg:
    """Walk the first image's segments up to its end marker; what follows is ignored.

    A file without one ends with its last scan. Raises `BrokenJpeg` if the segments make no image.
    """
    found = StrippedJpeg(source)
    segments = _AppSegments()
    try:
        _walk(found, segments)
    except ExcessiveJpeg:
        raise
    except BrokenJpeg:
        if not found.scans:
            raise
        # A progressive file's later scans make finer what the first ones show whole.
        is_whole = found.process == _PROGRESSIVE and len(found.scans) > _WHOLE_SCANS
        found.is_cut = not is_whole and source.find(_END, found.scans[-1][1]) < 0
    found.head, found.profile = segments.build(found.orientation, found.components)
    return found


def _is_text(content: bytes) -> bool:
    """Return whether three quarters of the bytes or more are what text is made of."""
    return 4 * len(content.translate(None, _NO_TEXT)) >= 3 * len(content) and content.isascii()


def _walk(found: StrippedJpeg, segments: "_AppSegments") -> None:
    source = found.source
    at = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(source, at)
        if match is None:
            raise BrokenJpeg("it ends before its end marker")
        start, marker = match.start(), source[match.start() + 1]
        if marker == _EOI:
            if not found.scans:
                raise BrokenJpeg("it has no image data")
            found.has_end = True
            return
        if marker in _WITHOUT_LENGTH:
            at = match.end()
            continue
        if marker == _SOI:
            raise BrokenJpeg("a second file begins before the first one's end")
        at = _find_segment_end(source, start)
        if marker in _FRAMES:
            _read_frame(found, start, at)
        if marker == _SOS:
            at = _read_scan(found, start, at)
        found.has_restarts = found.has_restarts or marker == _DRI
        if marker in _FRAMES or marker in _TABLES:
            _add_range(found, start, at)
        elif marker in {_APP0, _APP1, _APP2, _APP14}:
            segments.add(found, marker, source[start + 4 : at])
    raise ExcessiveJpeg(f"it has more than {MAX_SEGMENTS} segments")


def _find_segment_end(source: Source, start: int) -> int:
    # A shorter length than its own is taken for no more, as libjpeg does.
    length = max(2, int.from_bytes(source[start + 2 : start + 4], "big"))
    if start + 2 + length > len(source):
        raise BrokenJpeg("it ends inside a segment")
    return start + 2 + length


def _read_frame(found: StrippedJpeg, start: int, end: int) -> None:
    if found.width:
        raise BrokenJpeg("it has two frames")
    if end - start < 10:
        raise BrokenJpeg("its frame header is too short")
    found.frame = start
    found.process = found.source[start + 1]
    found.bits, found.height, found.width, found.components = struct.unpack(
        ">BHHB", found.source[start + 4 : start + 10]
    )
    factors = [(each >> 4, each & 15) for each in found.source[start + 11 : end : 3]]
    most = max((x for x, _ in factors), default=1) * max((y for _, y in factors), default=1)
    found.samples = found.width * found.height * sum(x * y for x, y in factors) // max(most, 1)


def _read_scan(found: StrippedJpeg, start: int, data: int) -> int:
    """Record the scan whose data begin at `data`, and return their end: the next marker but a restart."""
    if not found.width:
        raise BrokenJpeg("a scan comes before the frame")
    if len(found.scans) == MAX_SCANS:
        raise ExcessiveJpeg(f"it has more than {MAX_SCANS} scans")
    size = end = len(found.source)
    match = None
    for window in range(data, size, _WINDOW):
        # In windows, since the search holds the interpreter's lock; one byte over, since a marker has two.
        match = _SCAN_END.search(found.source, window, min(window + _WINDOW + 1, size))
        if match is not None:
            end = match.start()
            break
    else:
        # Files that were loaded or recovered by halves are filled up with zeros.
        while end > data and found.source[end - 1] in (0, 0xFF):
            end -= 1
    found.scans.append((data, end))
    _add_range(found, start, end)
    if match is None:
        raise BrokenJpeg("it ends before its end marker")
    return end


def _add_range(found: StrippedJpeg, start: int, end: int) -> None:
    if found.ranges and found.ranges[-1][1] == start:
        start = found.ranges.pop()[0]
    found.ranges.append((start, end))


class _AppSegments:
    """The application segments that decoding needs, rebuilt so that they hold no other data."""

    def __init__(self) -> None:
        self._has_jfif = False
        self._adobe_transform: int | None = None
        self._profile: dict[int, bytes] = {}
        self._profile_chunks = 0
        self._exif = b""

    def add(self, found: StrippedJpeg, marker: int, body: bytes) -> None:
        if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 12:
            self._has_jfif = True
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            self._adobe_transform = body[11]
        elif marker == _APP1 and body.startswith(b"Exif\0\0") and not self._exif:
            self._exif = body
            found.orientation = read_orientation(body)
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            self._profile.setdefault(body[12], body[14:])
            self._profile_chunks = body[13]

    def build(self, exif_orientation: int, components: int) -> tuple[bytes, bytes | None]:
        """Return the segments, and the profile if it could not be rebuilt among them."""
        profile = self._join_profile()
        if profile is not None and icc.get_colour_space(profile) not in _SPACES.get(components, ()):
            profile = None
        rebuilt = None if profile is None else icc.rebuild(profile)
        if profile is None and components == 3 and is_adobe_rgb(self._exif):
            rebuilt = icc.build(icc.ADOBE_RGB, icc.ADOBE_RGB_CURVE)
        segments = [b"\xff\xd8"]
        if self._has_jfif:
            # Version 1.1, without density and thumbnail.
            segments.append(_build_segment(_APP0, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
        if exif_orientation != 1:
            segments.append(_build_segment(_APP1, _build_exif(exif_orientation)))
        if self._adobe_transform is not None:
            segments.append(_build_segment(_APP14, b"Adobe\0d\0\0\0\0" + bytes([self._adobe_transform])))
        if rebuilt is not None:
            # It fits in one segment: its curves are short.
            segments.append(_build_segment(_APP2, b"ICC_PROFILE\0\1\1" + rebuilt))
        return b"".join(segments), profile if rebuilt is None else None

    def _join_profile(self) -> bytes | None:
        numbers = range(1, self._profile_chunks + 1)
        if not self._profile or self._profile.keys() != set(numbers):
            return None
        profile = b"".join(self._profile[number] for number in numbers)
        # The length comes first in a profile (ICC.1, section 7.2).
        length = int.from_bytes(profile[:4], "big")
        if icc.get_colour_space(profile) is None or not 128 <= length <= len(profile):
            return None
        return profile[:length]


def _build_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _build_exif(exif_orientation: int) -> bytes:
    """Build a TIFF structure with one directory of one entry: the orientation, a SHORT."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, exif_orientation, 0, 0)
