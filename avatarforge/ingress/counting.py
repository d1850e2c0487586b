"""Counts requests as they are answered: outside everything else, so that every answer passes here."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures

REFUSED = "avatarforge.refused"
"""Where in a request's scope the code of the error is noted that it was answered with."""
OTHER = "other"
"""Route of what no route answers, and method of what is none of HTTP's: clients could invent any number."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Counting:
    """Counts by method, route and status when an answer begins, and refusals by code."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        await self._app(scope, receive, counted)

    def _count(self, scope: Scope, status: int) -> None:
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        self._figures.count(metrics.HTTP_REQUESTS, method, _route(scope), str(status))
        if (code := scope.get(REFUSED)) is not None:
            self._figures.count(metrics.REFUSALS, code)


def _route(scope: Scope) -> str:
    """The path as it was declared, with names for its ids."""
    if (route := scope.get("route")) is not None:
        return str(route.path)
    endpoint = scope.get("endpoint")
    for route in getattr(scope.get("app"), "routes", ()) if endpoint is not None else ():
        if getattr(route, "endpoint", None) is endpoint:
            return str(route.path)
    return OTHER
