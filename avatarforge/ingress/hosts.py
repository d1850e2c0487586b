"""Who may be named as the site of a request, where nobody is asked for a key.

A service that listens for this machine only is within reach of every page that a browser on it shows: a page
can send forms there, and can have its own name mean our address (DNS rebinding), so that it may read answers.
Browsers tell which name was asked for, and for whose page.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from avatarforge.domain.errors import ForeignSite
from avatarforge.ingress.problems import error_response
from avatarforge.ingress.uploads import announced_length, drain


class KnownHosts:
    """Guards an ASGI application: answers requests that call it by one of `hosts`, from pages of those or of
    `origins`. What comes without names is no browser's."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = tuple(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (foreign := self._foreign(Headers(scope=scope))) is None:
            await self._app(scope, receive, send)
            return
        # A client that is still sending would not read the answer.
        request = Request(scope, receive)
        await drain(request.stream(), announced_length(request.headers))
        await error_response(ForeignSite(foreign, ", ".join(self._hosts)), scope)(scope, receive, send)

    def _foreign(self, headers: Headers) -> str | None:
        """The name in the request that is not to be there."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and _name(f"//{host}") not in self._hosts:
            return host
        if origin is not None and origin not in self._origins and _name(origin) not in self._hosts:
            return origin
        return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
