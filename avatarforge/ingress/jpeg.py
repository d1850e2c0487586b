"""JPEG files freed from their metadata by their segments alone: no pixel is decoded or encoded.

Segments as in ITU-T T.81, annex B; JFIF as in T.871; ICC profiles as in ICC.1, annex B.4.
"""

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from mmap import mmap

from avatarforge.storage.pictures import orientation

MOST_ICC_BYTES = 2 * 1024 * 1024
"""A larger colour profile is dropped: printers' tables have about one megabyte."""

MOST_SEGMENTS = 4096
MOST_SCANS = 100
"""Progressive files have about ten; each scan costs a pass over all coefficients, however small it is."""

_SOI, _EOI, _SOS, _APP0, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# DHT, DAC, DQT, DNL, DRI: what decoding needs beside frames and scans.
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}

# Two bytes each and not more, so that a long run of 0xFF costs no more than any other bytes.
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_WINDOW = 1024 * 1024
_SAMPLE = 32 * 1024
_SAMPLE_ROWS = 32
_END = b"\xff\xd9"

Source = bytes | mmap


class BrokenJpeg(ValueError):
    """The text completes "it cannot be decoded to its end (…)"."""


@dataclass(slots=True)
class StrippedJpeg:
    """What a JPEG file has for its first picture, as ranges of `source`."""

    source: Source
    width: int = 0
    height: int = 0
    """Pixels as stored, before the orientation."""
    orientation: int = 1
    head: bytes = b""
    """What is written anew: JFIF, orientation, Adobe's transform, colour profile."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Tables, frame and scans."""
    frame: int = 0
    """Where the frame's marker stands in `source`."""
    scans: list[int] = field(default_factory=list)
    """Where each scan's entropy-coded data begin in `source`."""

    def content(self) -> io.BufferedReader | io.BytesIO:
        """The file without metadata. It may read `source`, which must stay open as long."""
        if isinstance(self.source, bytes):
            with memoryview(self.source) as view:
                return io.BytesIO(b"".join([self.head, *(view[slice(*span)] for span in self.ranges), _END]))
        kept: list[tuple[Source, int, int]] = [(self.source, *span) for span in self.ranges]
        pieces = [(self.head, 0, len(self.head)), *kept, (_END, 0, 2)]
        return io.BufferedReader(_Pieces(pieces), 64 * 1024)

    def sample(self) -> bytes:
        """The top of the picture as a file of its own: quick to try a decoder on.

        It has the first 32 KiB of the first scan and a frame of at most `_SAMPLE_ROWS` rows: a decoder
        would paint the rows for which there are no data, at a cost that grows with their number.
        """
        until = self.scans[0] + _SAMPLE
        sample = bytearray(self.head)
        for start, end in self.ranges:
            if start <= self.frame < end:
                height_at = len(sample) + self.frame - start + 5
            if start < until:
                sample += self.source[start : min(end, until)]
        sample[height_at : height_at + 2] = min(self.height, _SAMPLE_ROWS).to_bytes(2, "big")
        return bytes(sample + _END)


def stripped(source: Source) -> StrippedJpeg:
    """Walk the first picture's segments up to its end marker; what follows is not looked at.

    Raises `BrokenJpeg` if the file ends before that, or its segments make no picture.
    """
    found = StrippedJpeg(source)
    kept = _Kept()
    at = 2
    for _ in range(MOST_SEGMENTS):
        match = _MARKER.search(source, at)
        if match is None:
            raise BrokenJpeg("it ends before its end marker")
        start, marker = match.start(), source[match.start() + 1]
        if marker == _EOI:
            if not found.scans:
                raise BrokenJpeg("it has no picture data")
            found.head = kept.written(found.orientation)
            return found
        if marker in _WITHOUT_LENGTH:
            at = match.end()
            continue
        if marker == _SOI:
            raise BrokenJpeg("a second file begins before the first one's end")
        at = _segment_end(source, start)
        if marker in _FRAMES:
            _read_frame(found, start, at)
        if marker == _SOS:
            at = _read_scan(found, at)
        if marker in _FRAMES or marker in _TABLES or marker == _SOS:
            _keep(found, start, at)
        elif marker in {_APP0, _APP1, _APP2, _APP14}:
            kept.take(found, marker, source[start + 4 : at])
    raise BrokenJpeg(f"it has more than {MOST_SEGMENTS} segments")


def _segment_end(source: Source, start: int) -> int:
    length = int.from_bytes(source[start + 2 : start + 4], "big")
    if length < 2 or start + 2 + length > len(source):
        raise BrokenJpeg("it ends inside a segment")
    return start + 2 + length


def _read_frame(found: StrippedJpeg, start: int, end: int) -> None:
    if found.width:
        raise BrokenJpeg("it has two frames")
    if end - start < 10:
        raise BrokenJpeg("its frame header is too short")
    found.frame = start
    found.height, found.width = struct.unpack(">HH", found.source[start + 5 : start + 9])


def _read_scan(found: StrippedJpeg, data: int) -> int:
    """Where the entropy-coded data that begin at `data` end: at the next marker that is no restart."""
    if not found.width:
        raise BrokenJpeg("a scan comes before the frame")
    if len(found.scans) == MOST_SCANS:
        raise BrokenJpeg(f"it has more than {MOST_SCANS} scans")
    found.scans.append(data)
    size = len(found.source)
    for window in range(data, size, _WINDOW):
        # In windows, since the search holds the interpreter's lock; one byte over, since a marker has two.
        match = _AFTER_SCAN.search(found.source, window, min(window + _WINDOW + 1, size))
        if match is not None:
            return match.start()
    raise BrokenJpeg("it ends before its end marker")


def _keep(found: StrippedJpeg, start: int, end: int) -> None:
    if found.ranges and found.ranges[-1][1] == start:
        start = found.ranges.pop()[0]
    found.ranges.append((start, end))


class _Kept:
    """The application segments that decoding needs, rebuilt so that nothing rides along in them."""

    def __init__(self) -> None:
        self._jfif: bytes | None = None
        self._adobe: bytes | None = None
        self._profile: dict[int, bytes] = {}
        self._profile_chunks = 0
        self._seen_exif = False

    def take(self, found: StrippedJpeg, marker: int, body: bytes) -> None:
        if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 12:
            # Without its thumbnail: 0 x 0 pixels.
            self._jfif = body[:12] + b"\0\0"
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            self._adobe = body[:12]
        elif marker == _APP1 and body.startswith(b"Exif\0\0") and not self._seen_exif:
            self._seen_exif = True
            found.orientation = orientation(body)
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            self._profile.setdefault(body[12], body[14:])
            self._profile_chunks = body[13]

    def written(self, exif_orientation: int) -> bytes:
        segments = [b"\xff\xd8"]
        if self._jfif is not None:
            segments.append(_segment(_APP0, self._jfif))
        if exif_orientation != 1:
            segments.append(_segment(_APP1, _minimal_exif(exif_orientation)))
        if self._adobe is not None:
            segments.append(_segment(_APP14, self._adobe))
        segments.extend(self._profile_segments())
        return b"".join(segments)

    def _profile_segments(self) -> list[bytes]:
        numbers = range(1, self._profile_chunks + 1)
        if not self._profile or self._profile.keys() != set(numbers):
            return []
        profile = b"".join(self._profile[number] for number in numbers)
        # The length comes first in a profile, 'acsp' at 36 in each (ICC.1, section 7.2).
        length = int.from_bytes(profile[:4], "big")
        if profile[36:40] != b"acsp" or not 128 <= length <= min(len(profile), MOST_ICC_BYTES):
            return []
        return _profile_written(profile[:length])


def _profile_written(profile: bytes) -> list[bytes]:
    most = 65535 - 2 - 14
    chunks = [profile[at : at + most] for at in range(0, len(profile), most)]
    return [
        _segment(_APP2, b"ICC_PROFILE\0" + bytes([number, len(chunks)]) + chunk)
        for number, chunk in enumerate(chunks, 1)
    ]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _minimal_exif(exif_orientation: int) -> bytes:
    """A TIFF structure with one directory of one entry: the orientation, a SHORT."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, exif_orientation, 0, 0)


class _Pieces(io.RawIOBase):
    """Ranges of several sources as one seekable file: no byte is copied before it is read."""

    def __init__(self, pieces: Sequence[tuple[Source, int, int]]) -> None:
        self._pieces = pieces
        self._begins = [0, *accumulate(end - start for _, start, end in pieces)]
        self._size = self._begins.pop()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]  # narrower than Buffer: BufferedReader hands memoryviews
        if self._at >= self._size:
            return 0
        number = bisect_right(self._begins, self._at) - 1
        source, start, end = self._pieces[number]
        begin = start + self._at - self._begins[number]
        size = min(end - begin, len(buffer))
        with memoryview(source) as view:
            buffer[:size] = view[begin : begin + size]
        self._at += size
        return size
