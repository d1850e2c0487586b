"""Multipart uploads read as a stream: a large photo into a file without a name, all else into memory.

The grammar is RFC 7578's (multipart/form-data) on RFC 2046's (boundaries).
"""

import asyncio
import binascii
import difflib
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from avatarforge.domain.errors import (
    AvatarForgeError,
    InvalidRequest,
    MalformedUpload,
    MissingPhoto,
    PhotoTooLarge,
    TooManyUploads,
    UnknownField,
    UnsupportedContentEncoding,
    UnsupportedMediaType,
)
from avatarforge.ingress.limits import ConcurrencyLimit
from avatarforge.ingress.upload.form import FORM_NAMES
from avatarforge.settings import UploadSettings
from avatarforge.storage.folder import translate_errors

PHOTO = "photo"
MAX_PARTS = 32
MAX_FIELD_BYTES = 8 * 1024
MAX_HEADERS = 8
MAX_HEADER_BYTES = 4 * 1024
MAX_FILENAME_CHARACTERS = 255

IDLE_TIMEOUT_SECONDS = 30.0
"""Silence of a client after which its upload is given up."""
MAX_DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_TIMEOUT_SECONDS = 10.0
"""How much, and how long, a refused upload is still read. A client that writes its whole body before it
reads would else meet a closed connection instead of the answer."""

_BESIDES_PHOTO = MAX_PARTS * (MAX_FIELD_BYTES + MAX_HEADERS * MAX_HEADER_BYTES)
_MAX_TEXT_BYTES = 300
"""A photo of no more, without a file name, may be a file's name in place of the file."""
_ENCODED_FILENAME = re.compile(rb"""filename\*\s*=\s*"?([\w.-]+)'[^']*'([^;"\s]+)""", re.IGNORECASE)
"""RFC 8187's form, which RFC 7578 forbids and some clients send all the same."""
_PLAIN_ENCODINGS = {b"", b"binary", b"8bit", b"7bit"}
_BLANKS = b" \t\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An upload as it was received. A photo on disk is a file without a name, which goes with its closing."""

    photo: BinaryIO
    """At its beginning."""
    filename: str
    """The client's name for it: for messages only."""
    fields: dict[str, str]
    """The other parts by name; none is there twice."""


@asynccontextmanager
async def receive_upload(
    stream: AsyncIterator[bytes], headers: Headers, limits: UploadSettings, folder: Path
) -> AsyncIterator[Upload]:
    """Read a request's body to its end.

    A photo of more than `limits.spool_threshold_bytes` lies in `folder` as long as the context is open.

    Raises `UnsupportedMediaType`, `UnsupportedContentEncoding`, `MalformedUpload` (a client that goes away or
    falls silent, too), `MissingPhoto`, `PhotoTooLarge`, `InvalidRequest` for a field that is unknown,
    repeated, too long or not text, `StorageFull` and `StorageUnavailable` if `folder` takes no file. In each
    case what the client still sends is read as by `drain_unread` or `drain`, and nothing is kept.
    """
    with closing(Spool(folder, limits)) as spool:
        form = _Form(spool, limits)
        try:
            parser = _make_parser(headers, form)
        except AvatarForgeError:
            await drain_unread(stream, headers)
            raise
        try:
            upload = await _receive(stream, parser, form, limits)
        except AvatarForgeError:
            await drain(stream, parse_content_length(headers))
            raise
        yield upload


@asynccontextmanager
async def acquire_upload_slot(limit: ConcurrencyLimit, request: Request) -> AsyncIterator[None]:
    """Hold a slot for an upload that is about to be read.

    Raises `TooManyUploads`, after what the client sends was read as by `receive_upload`.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(limit.slot())
        except TooManyUploads:
            await drain_unread(request.stream(), request.headers)
            raise
        yield


class Spool:
    """Takes a photo's bytes: into memory as long as they are few, then into a file without a name."""

    def __init__(self, folder: Path, limits: UploadSettings) -> None:
        self._folder = folder
        self._most_in_memory = limits.spool_threshold_bytes
        self._max_bytes = limits.max_bytes
        self.size = 0
        self.file: BinaryIO = BytesIO() if self._most_in_memory else self._open()

    def write(self, data: memoryview) -> None:
        """Raises `PhotoTooLarge`, `StorageFull` and `StorageUnavailable`."""
        self.size += len(data)
        if self.size > self._max_bytes:
            raise PhotoTooLarge(self._max_bytes)
        if isinstance(self.file, BytesIO) and self.file.tell() + len(data) > self._most_in_memory:
            self._move(self.file)
        self._write(data)

    def close(self) -> None:
        self.file.close()

    def _move(self, memory: BytesIO) -> None:
        self.file = self._open()
        with memory, memory.getbuffer() as content:
            self._write(content)

    def _write(self, data: memoryview) -> None:
        # On the event loop: the bytes go to the page cache, some 20 microseconds for 64 KiB, which is less
        # than handing them to a thread and back.
        with translate_errors():
            while data:
                data = data[self.file.write(data) :]

    def _open(self) -> BinaryIO:
        with translate_errors():
            # Unbuffered: parts come in chunks anyhow, and closing then never writes, so it never fails.
            try:
                return tempfile.TemporaryFile(dir=self._folder, buffering=0)
            except FileNotFoundError:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return tempfile.TemporaryFile(dir=self._folder, buffering=0)


async def _receive(
    stream: AsyncIterator[bytes], parser: "_Parser", form: "_Form", limits: UploadSettings
) -> Upload:
    left = limits.max_bytes + _BESIDES_PHOTO
    async with until_silence() as heard:
        async for chunk in stream:
            heard()
            # What stands before, between and behind the parts counts as well.
            left -= len(chunk)
            if left < 0:
                raise PhotoTooLarge(limits.max_bytes)
            parser.write(chunk)
    return form.finish()


def _make_parser(headers: Headers, form: "_Form") -> "_Parser":
    """Return the parser of a body with these headers, or refuse it unread."""
    content_type = headers.get("content-type", "")
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType(content_type)
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedContentEncoding(encoding)
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedUpload("the content type names no boundary")
    length = parse_content_length(headers)
    if length is not None and length > form.limits.max_bytes + _BESIDES_PHOTO:
        raise PhotoTooLarge(form.limits.max_bytes)
    return _Parser(boundary, form)


class _Parser:
    """Passes over the text before the first boundary (RFC 2046, section 5.1.1), and parses what follows."""

    def __init__(self, boundary: bytes, form: "_Form") -> None:
        self._delimiter = b"\r\n--" + boundary
        self._before: bytes | None = b"\r\n"
        """The end of what came before the first boundary; `None` from there on."""
        with _translate_parser_errors():
            self._parser = MultipartParser(
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
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes. Raises what the form raises, and `MalformedUpload`."""
        if self._before is not None:
            chunk = self._before + chunk
            at = chunk.find(self._delimiter)
            if at < 0:
                self._before = chunk[1 - len(self._delimiter) :]
                return
            self._before, chunk = None, chunk[at + 2 :]
        with _translate_parser_errors():
            self._parser.write(chunk)


@contextmanager
def _translate_parser_errors() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise MalformedUpload("its boundary or a part's headers break the grammar of RFC 7578") from error


@asynccontextmanager
async def until_silence() -> AsyncIterator[Callable[[], None]]:
    """Give up an upload whose client goes away, or is silent for `IDLE_TIMEOUT_SECONDS` (to a tenth more).

    What it hands out is to be called for each chunk.
    """
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(1.1 * IDLE_TIMEOUT_SECONDS) as limit:
            moved_at = clock()

            def heard() -> None:
                nonlocal moved_at
                # Moving the limit costs more than reading a chunk, and most uploads end before a tenth.
                if (now := clock()) - moved_at > 0.1 * IDLE_TIMEOUT_SECONDS:
                    moved_at = now
                    limit.reschedule(now + 1.1 * IDLE_TIMEOUT_SECONDS)

            yield heard
    except ClientDisconnect as error:
        raise MalformedUpload("the client went away before its end") from error
    except TimeoutError as error:
        raise MalformedUpload(f"nothing came for {IDLE_TIMEOUT_SECONDS:g} seconds") from error


def parse_content_length(headers: Headers) -> int | None:
    """Return the body's length in bytes, if the client tells it."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


async def drain_unread(stream: AsyncIterator[bytes], headers: Headers) -> None:
    """Drain a body of which nothing was read yet: unless its client waits to be asked for it, with
    `Expect: 100-continue` (RFC 9110, section 10.1.1)."""
    if headers.get("expect", "").lower() != "100-continue":
        await drain(stream, parse_content_length(headers))


async def drain(stream: AsyncIterator[bytes], content_length: int | None) -> None:
    """Read what a refused client still sends, within `MAX_DRAIN_BYTES` and `DRAIN_TIMEOUT_SECONDS`."""
    left = MAX_DRAIN_BYTES
    if content_length is not None and content_length > left:
        return
    with suppress(ClientDisconnect, TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
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
    is_base64: bool = False
    held: bytes = b""
    """The end of base64 that makes no byte yet."""
    text: bytearray = field(default_factory=bytearray)


class _Form:
    """The parser's callbacks: what the parts say so far. Raises at the first thing that is wrong."""

    def __init__(self, spool: Spool, limits: UploadSettings) -> None:
        self._spool = spool
        self.limits = limits
        self._parts = 0
        self._part = _Part()
        self._has_photo = False
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._ended = False

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MalformedUpload(f"it has more than {MAX_PARTS} parts")
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
        header = self._part.headers.get(b"content-disposition", b"")
        disposition, options = parse_options_header(header.decode("latin-1"))
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedUpload("a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        filename = _read_filename(header, options)
        self._part.name = name
        self._part.is_photo = name == PHOTO
        _check_name(name)
        if name in self._fields or (self._part.is_photo and self._has_photo):
            raise InvalidRequest(name, "given twice", "given once")
        if not self._part.is_photo and filename is not None:
            raise InvalidRequest(name, "a file", "a plain field")
        if self._part.is_photo:
            self._has_photo, self._filename = True, filename
        encoding = self._part.headers.get(b"content-transfer-encoding", b"").strip().lower()
        self._part.is_base64 = encoding == b"base64"
        if not self._part.is_base64 and encoding not in _PLAIN_ENCODINGS:
            raise InvalidRequest(
                "Content-Transfer-Encoding", encoding.decode("latin-1"), "left out, or binary, or base64"
            )

    def add_data(self, data: bytes, start: int, end: int) -> None:
        view = memoryview(data)[start:end]
        self._add(memoryview(self._decode(bytes(view))) if self._part.is_base64 else view)

    def _add(self, data: memoryview) -> None:
        if self._part.is_photo:
            self._add_to_photo(data)
            return
        self._part.text += data
        if len(self._part.text) > MAX_FIELD_BYTES:
            beginning = self._part.text.decode("utf-8", "replace")
            raise InvalidRequest(self._part.name, beginning, f"at most {MAX_FIELD_BYTES} bytes long")

    def _decode(self, data: bytes, *, is_last: bool = False) -> bytes:
        """Decode the next base64, as far as it makes whole bytes."""
        data = self._part.held + data.translate(None, _BLANKS)
        whole = len(data) if is_last else len(data) // 4 * 4
        self._part.held = data[whole:]
        try:
            return binascii.a2b_base64(data[:whole], strict_mode=whole > 0)
        except binascii.Error as error:
            raise MalformedUpload(f"the base64 of {self._part.name!r} is broken") from error

    def end_part(self) -> None:
        part = self._part
        if part.held:
            self._add(memoryview(self._decode(b"", is_last=True)))
        if part.is_photo:
            return
        try:
            self._fields[part.name] = part.text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(part.name, part.text.decode("utf-8", "replace"), "text in UTF-8") from error

    def end(self) -> None:
        self._ended = True

    def finish(self) -> Upload:
        """Return the upload, its photo at the beginning, once the body is at its end."""
        if not self._ended:
            raise MalformedUpload("it ends before its closing boundary")
        if not self._has_photo:
            raise MissingPhoto
        file = self._spool.file
        file.seek(0)
        if self._filename is None and self._spool.size <= _MAX_TEXT_BYTES:
            _refuse_text(file.read())
            file.seek(0)
        return Upload(photo=file, filename=self._filename or PHOTO, fields=self._fields)

    def _add_to_photo(self, data: memoryview) -> None:
        self._spool.write(data)


def _read_filename(header: bytes, options: dict[bytes, bytes]) -> str | None:
    filename = options.get(b"filename")
    if filename is not None:
        return filename.decode("utf-8", "replace")[:MAX_FILENAME_CHARACTERS]
    encoded = _ENCODED_FILENAME.search(header)
    if encoded is None:
        return None
    try:
        return unquote(encoded[2].decode("latin-1"), encoded[1].decode("latin-1"))[:MAX_FILENAME_CHARACTERS]
    except LookupError:
        return PHOTO


def _refuse_text(photo: bytes) -> None:
    """Refuse a file's name in place of the file, as `curl -F photo=me.jpg` sends it."""
    text = photo.decode("utf-8", "replace").strip()
    if text and text.isprintable() and "\ufffd" not in text:
        raise InvalidRequest(PHOTO, text, f"the file itself (did you mean {PHOTO}=@{text}?)")


def _check_name(name: str) -> None:
    known = (PHOTO, *FORM_NAMES.values())
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UnknownField(name, None, f"{PHOTO} or one of {', '.join(FORM_NAMES.values())}{hint}")
