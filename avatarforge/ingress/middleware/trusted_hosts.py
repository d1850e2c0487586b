"""The hosts and origins that a request may name, where no key is needed.

A service that listens for this machine only is within reach of every page that a browser on it shows: a page
can send forms there, and can have its own name mean our address (DNS rebinding), so that it may read answers.
Browsers tell which name was asked for, and for whose page. Other sites' pages may call us only where the
settings name them (CORS).
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from avatarforge.domain.errors import ForeignSite
from avatarforge.ingress.problems import error_response
from avatarforge.ingress.upload.multipart import drain_unread
from avatarforge.settings import AccessSettings

_PREFLIGHT_SECONDS = 600


class TrustedHosts:
    """Answers only requests that call us by one of `hosts`, from pages of those or of `origins`. A request
    that names neither does not come from a browser."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = tuple(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (foreign := self._find_foreign(Headers(scope=scope))) is None:
            await self._app(scope, receive, send)
            return
        # A client that is still sending would not read the answer.
        request = Request(scope, receive)
        await drain_unread(request.stream(), request.headers)
        await error_response(ForeignSite(foreign, ", ".join(self._hosts)), scope)(scope, receive, send)

    def _find_foreign(self, headers: Headers) -> str | None:
        """Return the host or origin of the request that is not trusted."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and _hostname(f"//{host}") not in self._hosts:
            return host
        if origin is not None and origin not in self._origins and _hostname(origin) not in self._hosts:
            return origin
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def cors(settings: AccessSettings) -> Middleware:
    """Answer preflight requests for the settings' origins. Keys are sent by pages, never by browsers
    themselves: credentials stay off."""
    return Middleware(
        CORSMiddleware,
        allow_origins=list(settings.origins),
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "Last-Event-ID",
            "If-None-Match",
            "If-Range",
            "Range",
            "traceparent",
            "tracestate",
        ],
        expose_headers=[
            "Accept-Ranges",
            "Content-Disposition",
            "Content-Range",
            "ETag",
            "Idempotent-Replayed",
            "Location",
            "Retry-After",
            "X-Request-Id",
        ],
        max_age=_PREFLIGHT_SECONDS,
    )
