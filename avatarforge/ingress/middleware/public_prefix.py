"""The path that a proxy in front of us has before ours.

It is a setting, or comes with each request as `X-Forwarded-Prefix` from a proxy that is trusted. Requests may
come with it or without it; addresses that we tell begin with it.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from avatarforge.ingress.middleware.security_headers import SecurityHeaders
from avatarforge.messages import PUBLIC_PREFIX

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]{1,100}){1,10}")


class PublicPrefix:
    """Takes the prefix off a request's path, and has it put before the addresses in the answer."""

    def __init__(
        self,
        app: ASGIApp,
        root_path: str,
        trusted_proxies: Sequence[IPv4Network | IPv6Network],
        *,
        behind_haproxy: bool,
    ) -> None:
        """Behind our own HAProxy the last entry of `X-Forwarded-For` is who asked it."""
        self._app = app
        self._root_path = root_path
        self._trusted_proxies = trusted_proxies
        self._behind_haproxy = behind_haproxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = self._find_prefix(scope) if scope["type"] == "http" else ""
        if not prefix:
            await self._app(scope, receive, send)
            return
        if scope["path"] == prefix:
            # The studio's addresses are relative to the page's, which ends with a slash.
            query = scope["query_string"].decode("latin-1")
            redirect = RedirectResponse(f"{prefix}/?{query}" if query else f"{prefix}/")
            # The layer that does it for all other answers is below this one.
            await SecurityHeaders(redirect)(scope, receive, send)
            return
        if scope["path"].startswith(f"{prefix}/"):
            # The same scope: the server looks at what becomes of it.
            scope["path"] = scope["path"][len(prefix) :]
            scope["raw_path"] = bytes(scope.get("raw_path") or b"").removeprefix(prefix.encode()) or None
        token = PUBLIC_PREFIX.set(prefix)
        try:
            await self._app(scope, receive, send)
        finally:
            PUBLIC_PREFIX.reset(token)

    def _find_prefix(self, scope: Scope) -> str:
        if not self._trusted_proxies:
            return self._root_path
        headers = Headers(scope=scope)
        told = headers.get("x-forwarded-prefix", "").rstrip("/")
        if not _PREFIX.fullmatch(told) or not self._is_trusted(scope, headers):
            return self._root_path
        return told

    def _is_trusted(self, scope: Scope, headers: Headers) -> bool:
        nearest = (scope.get("client") or ("", 0))[0]
        if self._behind_haproxy:
            # HAProxy adds a line of its own behind those that came.
            nearest = ",".join(headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
        try:
            address = ip_address(nearest)
        except ValueError:
            return False
        return any(address in network for network in self._trusted_proxies)
