"""The one table of permissions, by call. A call that is not in it is not answered where keys are needed; a
test walks all routes and methods of the application."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from starlette.routing import compile_path

CUSTOMER_PARAMETER = "customerId"
SDAPI_CUSTOMER = "sdapi"
"""Whose jobs AUTOMATIC1111's clients make."""


SDAPI_CONSTANTS: Mapping[str, object] = {
    "cmd-flags": {"api": True, "nowebui": True},
    "embeddings": {"loaded": {}, "skipped": {}},
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "realesrgan-models": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-vae": [],
    "upscalers": [],
}
"""Calls of AUTOMATIC1111's API about what this service has none of, and their answers."""


class Permission(Enum):
    """The credentials that a call asks for."""

    PUBLIC = auto()
    """Nothing."""
    KEY = auto()
    """Any valid key."""
    CUSTOMER = auto()
    """A key that can access the customer in the path or the message."""
    STREAM = auto()
    """A key like `CUSTOMER`, or a ticket of the customer."""
    IMAGE = auto()
    """A key like `CUSTOMER`, or our signature of the path."""
    SDAPI = auto()
    """A key that can access the customer `sdapi`, perhaps as the password of HTTP basic authentication."""
    SCRAPE = auto()
    """An admin key, known or last known as valid: metrics are wanted most while the database is away."""
    ADMIN_OF_ALL = auto()
    """An admin key that can access every customer."""


_JOB = "/customers/{customerId}/photos/{jobId}"

# Those that are asked for most come first.
HTTP: Mapping[str, Mapping[str, Permission]] = {
    f"{_JOB}/status": {"GET": Permission.CUSTOMER},
    "/customers/{customerId}": {
        "POST": Permission.CUSTOMER,
        "GET": Permission.CUSTOMER,
        "DELETE": Permission.CUSTOMER,
    },
    "/customers/{customerId}/photos/stream": {"GET": Permission.STREAM},
    "/customers/{customerId}/photos": {"GET": Permission.CUSTOMER},
    "/customers/{customerId}/tickets": {"POST": Permission.CUSTOMER},
    _JOB: {"DELETE": Permission.CUSTOMER},
    f"{_JOB}/original": {"GET": Permission.IMAGE},
    f"{_JOB}/generated": {"GET": Permission.IMAGE},
    f"{_JOB}/generated/{{index}}": {"GET": Permission.IMAGE},
    f"{_JOB}/kept": {"PUT": Permission.CUSTOMER},
    f"{_JOB}/links": {"GET": Permission.CUSTOMER},
    f"{_JOB}/cancel": {"POST": Permission.CUSTOMER},
    f"{_JOB}/retry": {"POST": Permission.CUSTOMER},
    f"{_JOB}/deliveries": {"GET": Permission.CUSTOMER},
    f"{_JOB}/deliveries/{{deliveryId}}/redeliver": {"POST": Permission.CUSTOMER},
    "/customers": {"GET": Permission.ADMIN_OF_ALL},
    "/photos": {"GET": Permission.ADMIN_OF_ALL},
    "/crop": {"POST": Permission.KEY},
    "/keys/self": {"GET": Permission.KEY},
    "/models": {"GET": Permission.KEY},
    "/styles": {"GET": Permission.KEY},
    "/metrics": {"GET": Permission.SCRAPE},
    "/about": {"GET": Permission.PUBLIC},
    "/healthz": {"GET": Permission.PUBLIC},
    "/readyz": {"GET": Permission.PUBLIC},
    "/": {"GET": Permission.PUBLIC},
    "/studio/{version}/{name:path}": {"GET": Permission.PUBLIC},
    "/docs": {"GET": Permission.PUBLIC},
    "/docs/setup.js": {"GET": Permission.PUBLIC},
    "/docs/assets/{path:path}": {"GET": Permission.PUBLIC},
    "/openapi.json": {"GET": Permission.PUBLIC},
    "/sdapi/v1/options": {"GET": Permission.SDAPI, "POST": Permission.SDAPI},
    **{
        f"/sdapi/v1/{call}": {"POST": Permission.SDAPI}
        for call in ("img2img", "txt2img", "interrupt", "refresh-checkpoints", "refresh-loras", "refresh-vae")
    },
    **{
        f"/sdapi/v1/{call}": {"GET": Permission.SDAPI}
        for call in (
            "progress",
            "sd-models",
            "samplers",
            "schedulers",
            "loras",
            "prompt-styles",
            "memory",
            *SDAPI_CONSTANTS,
        )
    },
}
"""Paths as routes have them, and their methods. HEAD goes with GET."""

GRPC: Mapping[str, Permission] = {
    "avatarforge.v1.ProfilePhotoJobService/SubmitPhoto": Permission.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/UploadPhoto": Permission.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/GetStatus": Permission.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/StreamStatus": Permission.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/CancelJob": Permission.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/KeepImage": Permission.CUSTOMER,
    "grpc.health.v1.Health/Check": Permission.PUBLIC,
    "grpc.health.v1.Health/List": Permission.PUBLIC,
    "grpc.health.v1.Health/Watch": Permission.PUBLIC,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteRule:
    """A call that was found in the table."""

    permission: Permission
    customer_id: str | None
    """From the path; as it was sent."""


_COMPILED = [(compile_path(path)[0], methods) for path, methods in HTTP.items()]


def find_route_rule(method: str, path: str) -> RouteRule | None:
    """Return the rule of an HTTP request; `None` if no row of the table allows it."""
    wanted = "GET" if method == "HEAD" else method
    for pattern, methods in _COMPILED:
        if (found := pattern.match(path)) is not None and (permission := methods.get(wanted)) is not None:
            return RouteRule(permission=permission, customer_id=found.groupdict().get(CUSTOMER_PARAMETER))
    return None


def list_methods(path: str) -> list[str]:
    """Return the methods that the path may be asked with, in alphabetical order."""
    allowed = {method for pattern, methods in _COMPILED if pattern.match(path) for method in methods}
    return sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))
