"""Counts requests as they are answered. The outermost layer, so that every answer passes here."""

from collections.abc import Iterable
from itertools import product

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.ingress.problems import ERROR_CODE, PROBLEM_TYPES
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry

OTHER = "other"
"""The route of what no route answers, and the method of what HTTP does not have: clients could invent any
number."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def declare_requests(registry: MetricsRegistry, routes: Iterable[BaseRoute]) -> None:
    """Declare the answers of each route that goes well or breaks, and all errors."""
    for route in routes:
        if isinstance(route, Route):
            well = str(getattr(route, "status_code", None) or 200)
            for method, status in product((route.methods or set()) - {"HEAD"}, (well, "500")):
                registry.declare(metrics.HTTP_REQUESTS, method, route.path, status)
    for error in PROBLEM_TYPES:
        registry.declare(metrics.ERRORS, error.code)


class RequestMetrics:
    """Counts by method, route and status when an answer begins, and errors by code."""

    def __init__(self, app: ASGIApp, registry: MetricsRegistry) -> None:
        self._app = app
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        await self._app(scope, receive, count_and_send)

    def _count(self, scope: Scope, status: int) -> None:
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        self._registry.count(metrics.HTTP_REQUESTS, method, _route_template(scope), str(status))
        if (code := scope.get(ERROR_CODE)) is not None:
            self._registry.count(metrics.ERRORS, code)


def _route_template(scope: Scope) -> str:
    """Return the path as it was declared, with names for its ids."""
    if (route := scope.get("route")) is not None:
        return str(route.path)
    endpoint = scope.get("endpoint")
    for route in getattr(scope.get("app"), "routes", ()) if endpoint is not None else ():
        if getattr(route, "endpoint", None) is endpoint:
            return str(route.path)
    return OTHER
