"""What both clients need to reach a server: its address, the key, time limits."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

import avatarforge
from avatarforge.client.errors import ServerUnreachable
from avatarforge.client.steps import Answer, Policy, Request

URL_VARIABLE, KEY_VARIABLE = "AVATARFORGE_URL", "AVATARFORGE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Connection:
    """The server's address and how it is talked to."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout: float,
        patience: float,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Raises `ValueError` for a URL or a key that is none."""
        self.url = checked_url(url or environ.get(URL_VARIABLE) or DEFAULT_URL)
        self.policy = Policy(url=self.url, patience=patience)
        self._api_key = checked_key(api_key or environ.get(KEY_VARIABLE) or "")
        self._timeout = timeout

    def options(self) -> dict[str, Any]:
        """Arguments for `httpx.Client` and `httpx.AsyncClient`."""
        headers = {"User-Agent": f"avatarforge/{avatarforge.__version__}"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return {
            "base_url": self.url,
            "headers": headers,
            # Storage may answer with a signed URL; httpx leaves the key away at another host.
            "follow_redirects": True,
            # The environment's proxy is for the world outside.
            "trust_env": urlsplit(self.url).hostname not in _LOOPBACK,
        }

    def arguments(self, request: Request) -> dict[str, Any]:
        """The request as the arguments of httpx's `build_request`."""
        limit = self._timeout + request.silence
        arguments: dict[str, Any] = {
            "method": request.method,
            "url": request.path,
            "headers": request.headers,
            "timeout": httpx.Timeout(limit, connect=min(CONNECT_SECONDS, self._timeout)),
        }
        # An empty one would take away the query that the path has.
        if request.query:
            arguments["params"] = request.query
        if request.photo is not None:
            arguments["data"] = request.fields
            arguments["files"] = {"photo": (request.photo.name, request.photo.content)}
        return arguments

    def lost(self, error: httpx.TransportError) -> ServerUnreachable:
        return ServerUnreachable(self.url, str(error) or type(error).__name__)


def answer_of(response: httpx.Response, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(url=str(response.url), status=response.status_code, headers=headers, body=body)


def checked_url(url: str) -> str:
    """The URL without a slash at its end. Raises `ValueError` for one that is none."""
    try:
        parts = urlsplit(url)
        # Looking at the port is what checks it.
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise ValueError(f"The server's URL is {url!r}, but it must be such as {DEFAULT_URL}.")
    return url.rstrip("/")


def checked_key(text: str) -> str:
    """The key without the line's end that comes with it from many a file. Raises `ValueError`, which does not
    tell the key, for one that no header can carry."""
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("The API key has characters that no key has: it is of the form afk_….")
    return key
