"""Security headers for every answer, the request's id for its log lines, and the last handler of errors."""

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.ingress.problems import error_response, find_customer_id_error, internal_error_response
from avatarforge.telemetry.logs import bind_request

log = structlog.get_logger(__name__)

PAGES = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy of pages: no inline script or style, no other host."""
REST = "default-src 'none'; frame-ancestors 'none'"
"""The content security policy of all other answers: a browser that shows one runs and loads nothing."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # For browsers that do not know `frame-ancestors`.
    "X-Frame-Options": "DENY",
    # Addresses hold customer ids, and links hold signatures.
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""For every answer that does not say otherwise itself."""


def _encode(policy: str) -> list[tuple[bytes, bytes]]:
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


_PAGE_HEADERS, _OTHER_HEADERS = _encode(PAGES), _encode(REST)


class SecurityHeaders:
    """Guards an ASGI application.

    Browsers may not guess types, show us in frames, or load what is not ours; an encoded slash may not move a
    customer id's end; an error that nobody expected is logged with its traceback and answered without it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Made by Serve where the client sends none; the client gets it with the answer.
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id")
        with bind_request(None if request_id is None else request_id.decode("latin-1")):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add_headers(message)
            await send(message)

        # Frameworks route by the decoded path, in which "a%2Fphotos" is the photos of "a".
        if b"%2f" in bytes(scope.get("raw_path") or b"").lower() and (error := find_customer_id_error(scope)):
            await error_response(error, scope)(scope, receive, send_secured)
            return
        try:
            await self._app(scope, receive, send_secured)
        except ClientDisconnect:
            log.debug("client went away", path=scope["path"])
        except Exception:
            if started:
                # Too late for another answer: the server has to break the connection off.
                raise
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            await internal_error_response(scope)(scope, receive, send_secured)


def _add_headers(message: Message) -> None:
    # Not by starlette's `MutableHeaders`, which search and encode anew for each of them.
    headers = list(message.get("headers", ()))
    given = {name.lower(): value for name, value in headers}
    is_page = given.get(b"content-type", b"").startswith(b"text/html")
    headers_to_add = _PAGE_HEADERS if is_page else _OTHER_HEADERS
    message["headers"] = headers + [header for header in headers_to_add if header[0] not in given]
