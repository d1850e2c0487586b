"""The REST interface as one ASGI application."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from pydantic.alias_generators import to_camel
from starlette.middleware import Middleware
from starlette.routing import Route

from avatarforge import __version__
from avatarforge.access.authorizer import Authorizer
from avatarforge.access.permissions import Permission
from avatarforge.ingress.middleware.authentication import AccessControl
from avatarforge.ingress.middleware.bodies import Compression, HeadRequests
from avatarforge.ingress.middleware.public_prefix import PublicPrefix
from avatarforge.ingress.middleware.request_metrics import RequestMetrics, declare_requests
from avatarforge.ingress.middleware.security_headers import SecurityHeaders
from avatarforge.ingress.middleware.trusted_hosts import TrustedHosts, cors
from avatarforge.ingress.problems import add_problem_handlers
from avatarforge.ingress.rest import job_commands, photos, system, tickets
from avatarforge.ingress.rest.openapi import add_documentation
from avatarforge.ingress.sdapi import SDAPI_SCHEME, sdapi_routes
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.ingress.studio import add_studio

ROUTERS = (photos.router, job_commands.router, tickets.router, system.router)
"""Of the documented calls."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_documented_api(lifespan: Lifespan | None = None, middleware: Sequence[Middleware] = ()) -> FastAPI:
    """Build the documented calls, with their description and the pages that show it, and no service."""
    api = FastAPI(
        title="AvatarForge",
        version=__version__,
        description="Turns photos into AI-made profile pictures. Errors are problem documents (RFC 9457).",
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=middleware,
        # What generated clients call the operations.
        generate_unique_id_function=lambda route: to_camel(route.name),
        # FastAPI's own spans show addresses with their queries, in which links and tickets are.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for router in ROUTERS:
        api.include_router(router)
    add_documentation(api)
    return api


def create_api(
    service: ProfilePhotoService,
    authorizer: Authorizer,
    lifespan: Lifespan | None = None,
    *,
    behind_haproxy: bool = False,
) -> FastAPI:
    """Build the application over the service, guarded by `authorizer`.

    `lifespan` is open as long as it serves.
    """
    api = create_documented_api(lifespan, _middleware(service, authorizer, behind_haproxy))
    api.state.service = service
    api.state.authorizer = authorizer
    # Asked more often than all other calls together. FastAPI's own routes to the same functions, behind
    # these, cost some 150 µs more a call (status: 250 against 100) and are there for the documentation.
    api.router.routes.insert(0, Route(photos.STATUS_PATH, photos.get_status, methods=["GET"]))
    api.router.routes.insert(0, Route(photos.SUBMIT_PATH, photos.submit_photo, methods=["POST"]))
    if service.settings.http.sdapi:
        api.router.routes.extend(sdapi_routes(service))
    add_problem_handlers(api)
    add_studio(api)
    for routes in (api.routes, *(router.routes for router in ROUTERS)):
        declare_requests(service.registry, routes)
    return api


def _middleware(
    service: ProfilePhotoService, authorizer: Authorizer, behind_haproxy: bool
) -> list[Middleware]:
    """List the layers that every request passes, outermost first."""
    access, http = service.settings.access, service.settings.http
    hosts, origins = access.names, access.origins
    trusted_hosts = [Middleware(TrustedHosts, hosts=hosts, origins=origins)] if hosts else []
    prefix = [
        Middleware(
            PublicPrefix,
            root_path=http.root_path,
            trusted_proxies=http.proxies,
            behind_haproxy=behind_haproxy,
        )
    ]
    return [
        *(prefix if http.root_path or http.proxies else []),
        Middleware(RequestMetrics, registry=service.registry),
        Middleware(SecurityHeaders),
        *trusted_hosts,
        *([cors(access)] if origins else []),
        Middleware(Compression),
        Middleware(AccessControl, authorizer=authorizer, schemes={Permission.SDAPI: SDAPI_SCHEME}),
        Middleware(HeadRequests),
    ]
