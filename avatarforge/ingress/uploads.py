"""Multipart uploads read as a stream: a large photo into a file without a name, all else into memory.

The grammar is RFC 7578's (multipart/form-data) on RFC 2046's (boundaries).
"""

import asyncio
import difflib
import errno
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from avatarforge.domain.errors import (
    AvatarForgeError,
    InvalidRequest,
    MalformedUpload,
    MissingPhoto,
    PhotoTooLarge,
    StorageFull,
    StorageUnavailable,
    TooManyUploads,
    UnsupportedMediaType,
)
from avatarforge.ingress.places import Places
from avatarforge.ingress.submissions import FIELDS
from avatarforge.settings import UploadSettings

PHOTO = "photo"
MOST_PARTS = 32
MOST_FIELD_BYTES = 8 * 1024
MOST_HEADERS = 8
MOST_HEADER_BYTES = 4 * 1024
LONGEST_FILENAME = 255

IDLE_SECONDS = 30.0
"""Silence of a client after which its upload is given up."""
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0
"""How much, and how long, a refused upload is still read. A client that writes its whole body before it
reads would else meet a closed connection instead of the answer."""

_BESIDES_PHOTO = MOST_PARTS * (MOST_FIELD_BYTES + MOST_HEADERS * MOST_HEADER_BYTES)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What a client sent. A photo on disk is a file without a name: closing it, or dying, removes it."""

    photo: BinaryIO
    """At its beginning."""
    filename: str
    """As the client called it: for messages only."""
    fields: dict[str, str]
    """The other parts by name; none is there twice."""


@asynccontextmanager
async def receive_upload(
    stream: AsyncIterator[bytes],
    content_type: str,
    limits: UploadSettings,
    folder: Path,
    content_length: int | None = None,
) -> AsyncIterator[Upload]:
    """Read a request's body to its end; a photo of more than `limits.memory_bytes` lies in `folder` as long
    as the context is open.

    Raises `UnsupportedMediaType`, `MalformedUpload` (a client that goes away or falls silent, too),
    `MissingPhoto`, `PhotoTooLarge`, `InvalidRequest` for a field that is unknown, repeated, too long or
    not text, `StorageFull` and `StorageUnavailable` if `folder` takes no file. In each case what the
    client still sends is read within `DRAIN_BYTES` and `DRAIN_SECONDS`, and nothing is kept.
    """
    with closing(_Spool(folder, limits.memory_bytes)) as spool:
        try:
            upload = await _received(stream, content_type, limits, spool, content_length)
        except AvatarForgeError:
            await drain(stream, content_length)
            raise
        yield upload


@asynccontextmanager
async def upload_place(
    places: Places, stream: AsyncIterator[bytes], content_length: int | None
) -> AsyncIterator[None]:
    """A place for an upload that is about to be read.

    Raises `TooManyUploads`, after what the client sends was read as by `receive_upload`.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(places.one())
        except TooManyUploads:
            await drain(stream, content_length)
            raise
        yield


class _Spool:
    """Takes a photo's bytes: into memory as long as they are few, then into a file."""

    def __init__(self, folder: Path, most_in_memory: int) -> None:
        self._folder = folder
        self._most_in_memory = most_in_memory
        self.file: BinaryIO = BytesIO() if most_in_memory else self._opened()

    def write(self, data: memoryview) -> None:
        if isinstance(self.file, BytesIO) and self.file.tell() + len(data) > self._most_in_memory:
            self._move(self.file)
        self._write(data)

    def close(self) -> None:
        self.file.close()

    def _move(self, memory: BytesIO) -> None:
        self.file = self._opened()
        with memory, memory.getbuffer() as content:
            self._write(content)

    def _write(self, data: memoryview) -> None:
        # On the event loop: the bytes go to the page cache, some 20 microseconds for 64 KiB, which is less
        # than handing them to a thread and back.
        with _writing():
            while data:
                data = data[self.file.write(data) :]

    def _opened(self) -> BinaryIO:
        with _writing():
            # Unbuffered: parts come in chunks anyhow, and closing then never writes, so it never fails.
            try:
                return tempfile.TemporaryFile(dir=self._folder, buffering=0)
            except FileNotFoundError:
                self._folder.mkdir(parents=True, exist_ok=True)
                return tempfile.TemporaryFile(dir=self._folder, buffering=0)


async def _received(
    stream: AsyncIterator[bytes],
    content_type: str,
    limits: UploadSettings,
    spool: _Spool,
    content_length: int | None,
) -> Upload:
    form = _Form(spool, limits)
    parser = _parser(content_type, form)
    left = limits.max_bytes + _BESIDES_PHOTO
    if content_length is not None and content_length > left:
        raise PhotoTooLarge(limits.max_bytes)
    async with until_silence() as heard:
        async for chunk in stream:
            heard()
            # What stands before, between and behind the parts counts as well.
            left -= len(chunk)
            if left < 0:
                raise PhotoTooLarge(limits.max_bytes)
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise MalformedUpload(str(error)) from error
    return form.finished()


def _parser(content_type: str, form: "_Form") -> MultipartParser:
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedUpload("the content type names no boundary")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.add_header_name,
                "on_header_value": form.add_header_value,
                "on_header_end": form.end_header,
                "on_headers_finished": form.end_headers,
                "on_part_data": form.add_data,
                "on_part_end": form.end_part,
                "on_end": form.end,
            },
            max_header_count=MOST_HEADERS,
            max_header_size=MOST_HEADER_BYTES,
        )
    except FormParserError as error:
        raise MalformedUpload(str(error)) from error


@asynccontextmanager
async def until_silence() -> AsyncIterator[Callable[[], None]]:
    """Gives up an upload whose client goes away, or is silent for `IDLE_SECONDS` (a tenth more at most).

    What it hands out is to be called for each chunk.
    """
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(1.1 * IDLE_SECONDS) as limit:
            moved_at = clock()

            def heard() -> None:
                nonlocal moved_at
                # Moving the limit costs more than reading a chunk, and most uploads end before a tenth.
                if (now := clock()) - moved_at > 0.1 * IDLE_SECONDS:
                    moved_at = now
                    limit.reschedule(now + 1.1 * IDLE_SECONDS)

            yield heard
    except ClientDisconnect as error:
        raise MalformedUpload("the client went away before its end") from error
    except TimeoutError as error:
        raise MalformedUpload(f"nothing came for {IDLE_SECONDS:g} seconds") from error


def announced_length(headers: Headers) -> int | None:
    """Bytes of the body, where the client tells."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


async def drain(stream: AsyncIterator[bytes], content_length: int | None) -> None:
    """Read what a refused client still sends, within `DRAIN_BYTES` and `DRAIN_SECONDS`."""
    left = DRAIN_BYTES
    if content_length is not None and content_length > left:
        return
    with suppress(ClientDisconnect, TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return


@dataclass(slots=True)
class _Part:
    """The part that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    name: str = ""
    is_photo: bool = False
    text: bytearray = field(default_factory=bytearray)


class _Form:
    """The parser's callbacks: what the parts say so far. Raises at the first thing that is wrong."""

    def __init__(self, spool: _Spool, limits: UploadSettings) -> None:
        self._spool = spool
        self._limits = limits
        self._parts = 0
        self._part = _Part()
        self._photo_bytes = 0
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._ended = False

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise MalformedUpload(f"it has more than {MOST_PARTS} parts")
        self._part = _Part()

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def end_header(self) -> None:
        part = self._part
        part.headers[part.header_name.lower()] = part.header_value
        part.header_name = part.header_value = b""

    def end_headers(self) -> None:
        disposition, options = parse_options_header(
            self._part.headers.get(b"content-disposition", b"").decode("latin-1")
        )
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedUpload("a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._part.name = name
        self._part.is_photo = name == PHOTO
        _check_name(name)
        if name in self._fields or (self._part.is_photo and self._filename is not None):
            raise InvalidRequest(name, "given twice", "given once")
        if not self._part.is_photo and filename is not None:
            raise InvalidRequest(name, "a file", "a plain field")
        if self._part.is_photo:
            if filename is None:
                raise MissingPhoto
            self._filename = filename.decode("utf-8", "replace")[:LONGEST_FILENAME]

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_photo:
            self._add_to_photo(memoryview(data)[start:end])
            return
        self._part.text += data[start:end]
        if len(self._part.text) > MOST_FIELD_BYTES:
            beginning = self._part.text.decode("utf-8", "replace")
            raise InvalidRequest(self._part.name, beginning, f"at most {MOST_FIELD_BYTES} bytes long")

    def end_part(self) -> None:
        part = self._part
        if part.is_photo:
            return
        try:
            self._fields[part.name] = part.text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(part.name, part.text.decode("utf-8", "replace"), "text in UTF-8") from error

    def end(self) -> None:
        self._ended = True

    def finished(self) -> Upload:
        """The upload, its photo at the beginning, once the body is at its end."""
        if not self._ended:
            raise MalformedUpload("it ends before its closing boundary")
        if self._filename is None:
            raise MissingPhoto
        self._spool.file.seek(0)
        return Upload(photo=self._spool.file, filename=self._filename, fields=self._fields)

    def _add_to_photo(self, data: memoryview) -> None:
        self._photo_bytes += len(data)
        if self._photo_bytes > self._limits.max_bytes:
            raise PhotoTooLarge(self._limits.max_bytes)
        self._spool.write(data)


def _check_name(name: str) -> None:
    known = (PHOTO, *FIELDS)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InvalidRequest("A field's name", name, f"{PHOTO} or one of {', '.join(FIELDS)}{hint}")


@contextmanager
def _writing() -> Iterator[None]:
    """The system's errors, as those of a storage that takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFull(str(error)) from error
        raise StorageUnavailable(str(error)) from error
