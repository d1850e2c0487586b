"""The REST interface as one ASGI application."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.routing import Route

from avatarforge import __version__
from avatarforge.access.gate import Gate
from avatarforge.ingress import about, commands, routes, visits
from avatarforge.ingress.access import AccessControl
from avatarforge.ingress.cors import add_cors
from avatarforge.ingress.counting import Counting
from avatarforge.ingress.documentation import add_documentation
from avatarforge.ingress.edge import Edge
from avatarforge.ingress.hosts import KnownHosts
from avatarforge.ingress.problems import add_problem_handlers
from avatarforge.ingress.sdapi import sdapi_routes
from avatarforge.ingress.service import ProfilePhotos
from avatarforge.ingress.studio import add_studio

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def described_api(lifespan: Lifespan | None = None) -> FastAPI:
    """The documented calls, with their description and the pages that show it, and nothing behind them."""
    api = FastAPI(
        title="AvatarForge",
        version=__version__,
        description="Turns photos into AI-made profile pictures. Errors are problem documents (RFC 9457).",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        # FastAPI's own spans show addresses with their queries, in which links and tickets are.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for calls in (routes, commands, visits, about):
        api.include_router(calls.router)
    add_documentation(api)
    return api


def create_api(photos: ProfilePhotos, gate: Gate, lifespan: Lifespan | None = None) -> FastAPI:
    """The application over the given service, behind the gate. `lifespan` is open as long as it serves."""
    api = described_api(lifespan)
    api.state.photos = photos
    api.state.gate = gate
    # Asked more often than all other calls together. FastAPI's own routes to the same functions, behind
    # these, cost some 150 µs more a call (status: 250 against 100) and are there for the documentation.
    api.router.routes.insert(0, Route(routes.STATUS_PATH, routes.photo_status, methods=["GET"]))
    api.router.routes.insert(0, Route(routes.SUBMIT_PATH, routes.submit_photo, methods=["POST"]))
    if photos.settings.http.sdapi:
        api.router.routes.extend(sdapi_routes(photos))
    api.add_middleware(AccessControl, gate=gate)
    add_cors(api, photos.settings.access)
    if hosts := photos.settings.access.names():
        api.add_middleware(KnownHosts, hosts=hosts, origins=photos.settings.access.origins())
    api.add_middleware(Edge)
    api.add_middleware(Counting, figures=photos.figures)
    add_problem_handlers(api)
    add_studio(api)
    return api
