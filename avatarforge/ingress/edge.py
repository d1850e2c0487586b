"""The outermost layer: what no route may forget."""

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.ingress.problems import error_response, misnamed_customer, unexpected_response

log = structlog.get_logger(__name__)


class Edge:
    """Guards an ASGI application.

    Browsers may not guess types; an encoded slash may not move a customer id's end; an error that
    nobody expected is logged with its traceback and answered without it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        # Frameworks route by the decoded path, in which "a%2Fphotos" is the photos of "a".
        if b"%2f" in bytes(scope.get("raw_path") or b"").lower() and (error := misnamed_customer(scope)):
            await error_response(error, scope)(scope, receive, guarded)
            return
        try:
            await self._app(scope, receive, guarded)
        except ClientDisconnect:
            log.debug("client went away", path=scope["path"])
        except Exception:
            if started:
                # Too late for another answer: the server has to break the connection off.
                raise
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            await unexpected_response(scope)(scope, receive, guarded)
