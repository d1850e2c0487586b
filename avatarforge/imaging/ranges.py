"""Files put together from ranges of others: no byte is copied before it is read."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from mmap import mmap

Source = bytes | mmap
Piece = tuple[Source, int, int]
"""Bytes of a source from the first offset up to the second."""


def open_pieces(pieces: Sequence[Piece]) -> io.BufferedReader | io.BytesIO:
    """Open the pieces as one file. It may read their sources, which must stay open as long."""
    if all(isinstance(source, bytes) for source, _, _ in pieces):
        return io.BytesIO(b"".join(memoryview(source)[start:end] for source, start, end in pieces))
    return io.BufferedReader(_ConcatenatedFile(pieces), 64 * 1024)


class _ConcatenatedFile(io.RawIOBase):
    def __init__(self, pieces: Sequence[Piece]) -> None:
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
