"""The bodies of answers: compressed where that gains, left out where HEAD asks."""

from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_COMPRESSED_BYTES = 2048
"""Smaller answers fit a packet or two as they are, and compressing them would take longer than it saves."""


class Compression(GZipMiddleware):
    """Compresses answers but images and events, which it knows, and statuses.

    Those are too small to gain, and asked for more often than all else: to look at each took a tenth of its
    time.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=MIN_COMPRESSED_BYTES, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/status"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class HeadRequests:
    """Answers HEAD as GET is answered (RFC 9110, section 9.3.2), without the body. An endless one is not
    begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_over = False

        async def send_head(message: Message) -> None:
            nonlocal is_over
            if is_over:
                raise ClientDisconnect
            if message["type"] == "http.response.start":
                # Servers and metrics go by the method that was asked for.
                scope["method"] = "HEAD"
                await send(message)
            elif message["type"] == "http.response.body":
                is_over = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                if message.get("more_body"):
                    raise ClientDisconnect

        # The same scope: the layers around this one look at what was found out of it.
        scope["method"] = "GET"
        # A range counts for GET only (section 14.2).
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        try:
            await self._app(scope, receive, send_head)
        except ClientDisconnect:
            if not is_over:
                raise
        finally:
            scope["method"] = "HEAD"
