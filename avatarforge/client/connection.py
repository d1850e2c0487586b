"""The parts that both clients share: address and key, paths, retries, and parsing of responses."""

import asyncio
import os
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

import avatarforge
from avatarforge.client.errors import ServerBusy, ServerUnreachable, UnexpectedResponse
from avatarforge.messages import Message, ProfilePhotoJobStatus

M = TypeVar("M", bound=Message)

URL_VARIABLE, API_KEY_VARIABLE = "AVATARFORGE_URL", "AVATARFORGE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
MAX_CONNECT_TIMEOUT_SECONDS = 5.0
MIN_RETRY_DELAY_SECONDS, MAX_RETRY_DELAY_SECONDS = 0.2, 5.0
"""Between two tries: doubled each time, and varied at random."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class JobRef(NamedTuple):
    """The ids of a job."""

    customer_id: str
    job_id: str


_SUFFIXES = {"image/png": ".png", "image/webp": ".webp", "image/jpeg": ".jpg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """The file of an image."""

    content: bytes
    media_type: str
    """Such as `image/png`."""

    @property
    def suffix(self) -> str:
        """How names of such files end, such as `.png`."""
        return _SUFFIXES.get(self.media_type, ".png")

    def __repr__(self) -> str:
        return f"<ImageFile {self.media_type}, {len(self.content)} bytes>"


Job = ProfilePhotoJobStatus | JobRef
"""A job that the client returned, or its ids if nothing else is known."""
Photo = str | Path | bytes | BinaryIO
"""A file by its path, its bytes, or an open file that is read to its end."""


class Connection:
    """The server's address and the settings of a client."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout: float,
        retry_timeout: float,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Take what is `None` from `environ`. Raises `ValueError` if the URL or the key is not valid."""
        self.url = validate_url(url or environ.get(URL_VARIABLE) or DEFAULT_URL)
        self._api_key = validate_api_key(api_key or environ.get(API_KEY_VARIABLE) or "")
        self.retry_timeout = retry_timeout
        self._timeout = timeout

    def build_httpx_options(self) -> dict[str, Any]:
        """Return the arguments for `httpx.Client` and `httpx.AsyncClient`."""
        headers = {"User-Agent": f"avatarforge/{avatarforge.__version__}"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return {
            "base_url": self.url,
            "headers": headers,
            # Storage may answer with a signed URL; httpx does not send the key to another host.
            "follow_redirects": True,
            # The environment's proxy is for the world outside.
            "trust_env": urlsplit(self.url).hostname not in _LOOPBACK,
        }

    def build_timeouts(self, held_seconds: float) -> httpx.Timeout:
        """Return the timeouts of a request whose response the server may hold back for `held_seconds`."""
        connect = min(MAX_CONNECT_TIMEOUT_SECONDS, self._timeout)
        return httpx.Timeout(self._timeout + held_seconds, connect=connect)

    def strip_prefix(self, path: str | None) -> str | None:
        """Return a path that the server told without what our URL has already."""
        prefix = urlsplit(self.url).path
        if path is None or not path.startswith(f"{prefix}/"):
            return path
        return path.removeprefix(prefix)

    def translate_error(self, error: httpx.TransportError) -> ServerUnreachable:
        return ServerUnreachable(self.url, str(error) or type(error).__name__)


class Backoff:
    """The delays between tries, exponential with jitter, until the retry timeout is over."""

    def __init__(self, retry_timeout: float) -> None:
        self._retry_timeout = retry_timeout
        self.reset()

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._deadline: float | None = None
        self._max_delay = MIN_RETRY_DELAY_SECONDS

    def next_delay(self, error: ServerUnreachable | ServerBusy) -> float:
        """Return the seconds until the next try. Raises `error` if that would be after the retry timeout."""
        if self._deadline is None:
            # From the first failure on: a response may be held back, or a stream be silent, for longer.
            self._deadline = time.monotonic() + self._retry_timeout
        delay = self._max_delay * random.uniform(0.5, 1)
        self._max_delay = min(2 * self._max_delay, MAX_RETRY_DELAY_SECONDS)
        if isinstance(error, ServerBusy):
            delay = max(delay, error.retry_after or 0)
        if time.monotonic() + delay > self._deadline:
            raise error
        return delay


def customer_path(customer_id: str) -> str:
    return f"/customers/{quote_segment(customer_id)}"


def job_path(job: Job, resource: str = "") -> str:
    """Return the path of the job itself, or of one of its resources, such as `status`."""
    path = f"{customer_path(job.customer_id)}/photos/{quote_segment(job.job_id)}"
    return f"{path}/{resource}" if resource else path


def quote_segment(text: str) -> str:
    """Quote one segment of a path, so that the server refuses an invalid id, and does not misread it: with a
    slash it would be two segments, and ".." would name the parent, so that erasing such a job would erase
    its customer.
    """
    # `quote` leaves dots alone, and httpx resolves a segment of one or two of them.
    return quote(text, safe="") if text.strip(".") else "%2E" * len(text)


def load_photo(photo: Photo) -> tuple[str, bytes]:
    """Return the file's name and content; this blocks.

    Raises `OSError` if it cannot be read, and `TypeError` if it is no photo.
    """
    match photo:
        case str() | Path():
            return Path(photo).name, Path(photo).read_bytes()
        case bytes():
            return "photo", photo
    content = photo.read() if hasattr(photo, "read") else None
    if not isinstance(content, bytes):
        what = 'a file that is open as text: open it with "rb"' if isinstance(content, str) else repr(photo)
        raise TypeError(f"A photo is a path, the file's bytes, or a file open in binary mode, not {what}.")
    return Path(str(getattr(photo, "name", "photo"))).name, content


async def async_load_photo(photo: Photo) -> tuple[str, bytes]:
    return await asyncio.to_thread(load_photo, photo)


def encode_form(**fields: object) -> dict[str, str]:
    """Return the form fields of an upload; those that are `None` are left out."""
    return {
        to_camel(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def make_key_header(key: str | None = None) -> dict[str, str]:
    """Return the header that names a request, by default with a new name."""
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def parse_response(kind: type[M], response: httpx.Response) -> M:
    """Parse the response's body. Raises `UnexpectedResponse`."""
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnexpectedResponse(str(response.url), f"{kind.__name__} {place}: {first['msg']}") from error


def validate_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises `ValueError` if it is not an HTTP URL."""
    try:
        parts = urlsplit(url)
        # Reading the port is what validates it.
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"The server's URL is {url!r}, but it must be such as {DEFAULT_URL}.")
    return url.rstrip("/")


def validate_api_key(text: str) -> str:
    """Return the key without the line end that many a file adds.

    Raises `ValueError`, without the key in its message, if no header can carry the key.
    """
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("The API key has characters that no key has: it is of the form afk_….")
    return key
