"""The web studio at `/`: one page and its files, read once, each under an address that caches may keep.

The address holds a digest of all files, so it changes with any of them. The page itself is asked for each
time, which costs a 304. Nothing is loaded from another host, and the page's policy holds it to that.
"""

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("studio")
PAGE = "index.html"
FOR_EVER = "public, max-age=31536000, immutable"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        # Images are fetched with a key and shown as blobs; previews come as data within an event.
        "img-src 'self' blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No string ever becomes markup or code.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The content security policy of the page: no inline script or style, no other host."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_ANY_VERSION = "studio/-/"
"""How the page writes the addresses of its files, from itself on; the digest takes the dash's place."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it goes over the wire."""

    content: bytes
    zipped: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> "_File":
        zipped = gzip.compress(content, mtime=0)
        return cls(content, zipped, _TYPES[suffix], sha256(content).hexdigest()[:32])

    def response(self, request: Request, headers: dict[str, str]) -> Response:
        takes_zip = "gzip" in request.headers.get("accept-encoding", "")
        smaller = takes_zip and len(self.zipped) < len(self.content)
        etag = f'"{self.etag}{"-gzip" if smaller else ""}"'
        headers = {**headers, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if smaller:
            # A cache may give the plain file to everybody, but not this one.
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(self.zipped if smaller else self.content, media_type=self.media_type, headers=headers)


class Studio:
    """The page and its files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        contents = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES
        }
        digest = sha256()
        for name, content in contents.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self.version = digest.hexdigest()[:16]
        contents[PAGE] = self._page(contents[PAGE].decode(), contents).encode()
        self._files = {name: _File.of(content, Path(name).suffix) for name, content in contents.items()}

    def routes(self) -> Iterator[Route]:
        yield Route("/", self._show_page)
        yield Route("/studio/{version}/{name:path}", self._show_file)

    async def _show_page(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        return self._files[PAGE].response(request, headers)

    async def _show_file(self, request: Request) -> Response:
        name, version = request.path_params["name"], request.path_params["version"]
        if name not in self._files or name == PAGE:
            raise HTTPException(404)
        # While replicas are replaced, a page of one release may ask a replica of another.
        caching = FOR_EVER if version == self.version else "no-cache"
        return self._files[name].response(request, {"Cache-Control": caching})

    def _page(self, page: str, names: Iterable[str]) -> str:
        """The page with its files' addresses, and all modules named so that they load at once."""
        modules = [name for name in names if name.endswith(".js") and "/" not in name]
        preloads = "".join(f'<link rel="modulepreload" href="{_ANY_VERSION}{name}">' for name in modules)
        return page.replace("<!-- modules -->", preloads).replace(
            _ANY_VERSION, _ANY_VERSION.replace("-", self.version)
        )


def add_studio(api: FastAPI) -> None:
    """The studio at `/`, its files under `/studio/`."""
    api.router.routes.extend(Studio().routes())
