"""The one table of who may make which call. A call that is not in it is not answered where keys are needed;
a test walks all routes and methods of the application."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from starlette.routing import compile_path

CUSTOMER_PARAMETER = "customerId"
SDAPI_CUSTOMER = "sdapi"
"""Whose jobs AUTOMATIC1111's clients make."""


class Rule(Enum):
    """What a request must show."""

    OPEN = auto()
    """Nothing."""
    KEY = auto()
    """Any valid key."""
    CUSTOMER = auto()
    """A key that reaches the customer in the path or the message."""
    STREAM = auto()
    """As `CUSTOMER`, or a ticket of the customer."""
    IMAGE = auto()
    """As `CUSTOMER`, or our signature of the path."""
    SDAPI = auto()
    """A key that reaches the customer `sdapi`, perhaps as the password of HTTP basic authentication."""
    ADMIN = auto()
    """A key that administers."""
    ADMIN_OF_ALL = auto()
    """A key that administers and reaches every customer."""


_JOB = "/customers/{customerId}/photos/{jobId}"

# Those that are asked for most come first.
HTTP: Mapping[str, Mapping[str, Rule]] = {
    f"{_JOB}/status": {"GET": Rule.CUSTOMER},
    "/customers/{customerId}": {"POST": Rule.CUSTOMER, "GET": Rule.CUSTOMER, "DELETE": Rule.CUSTOMER},
    "/customers/{customerId}/photos/stream": {"GET": Rule.STREAM},
    "/customers/{customerId}/photos": {"GET": Rule.CUSTOMER},
    "/customers/{customerId}/tickets": {"POST": Rule.CUSTOMER},
    _JOB: {"DELETE": Rule.CUSTOMER},
    f"{_JOB}/original": {"GET": Rule.IMAGE},
    f"{_JOB}/generated": {"GET": Rule.IMAGE},
    f"{_JOB}/links": {"GET": Rule.CUSTOMER},
    f"{_JOB}/cancel": {"POST": Rule.CUSTOMER},
    f"{_JOB}/retry": {"POST": Rule.CUSTOMER},
    f"{_JOB}/deliveries": {"GET": Rule.CUSTOMER},
    f"{_JOB}/deliveries/{{deliveryId}}/redeliver": {"POST": Rule.CUSTOMER},
    "/customers": {"GET": Rule.ADMIN_OF_ALL},
    "/models": {"GET": Rule.KEY},
    "/styles": {"GET": Rule.KEY},
    "/metrics": {"GET": Rule.ADMIN},
    "/healthz": {"GET": Rule.OPEN},
    "/readyz": {"GET": Rule.OPEN},
    "/": {"GET": Rule.OPEN},
    "/studio/{version}/{name:path}": {"GET": Rule.OPEN},
    "/docs": {"GET": Rule.OPEN},
    "/docs/setup.js": {"GET": Rule.OPEN},
    "/docs/assets/{path:path}": {"GET": Rule.OPEN},
    "/openapi.json": {"GET": Rule.OPEN},
    "/sdapi/v1/img2img": {"POST": Rule.SDAPI},
    "/sdapi/v1/progress": {"GET": Rule.SDAPI},
    "/sdapi/v1/interrupt": {"POST": Rule.SDAPI},
    "/sdapi/v1/sd-models": {"GET": Rule.SDAPI},
    "/sdapi/v1/options": {"GET": Rule.SDAPI},
}
"""Paths as routes have them, and their methods. HEAD goes with GET."""

GRPC: Mapping[str, Rule] = {
    "avatarforge.v1.ProfilePhotoJobService/SubmitPhoto": Rule.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/GetStatus": Rule.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/StreamStatus": Rule.CUSTOMER,
    "avatarforge.v1.ProfilePhotoJobService/CancelJob": Rule.CUSTOMER,
    "grpc.health.v1.Health/Check": Rule.OPEN,
    "grpc.health.v1.Health/List": Rule.OPEN,
    "grpc.health.v1.Health/Watch": Rule.OPEN,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruled:
    """A call that was found in the table."""

    rule: Rule
    customer_id: str | None
    """From the path; as it was sent."""


_COMPILED = [(compile_path(path)[0], methods) for path, methods in HTTP.items()]


def rule_of(method: str, path: str) -> Ruled | None:
    """The rule of an HTTP request; `None` for one that no row of the table allows."""
    wanted = "GET" if method == "HEAD" else method
    for pattern, methods in _COMPILED:
        if (found := pattern.match(path)) is not None and (rule := methods.get(wanted)) is not None:
            return Ruled(rule=rule, customer_id=found.groupdict().get(CUSTOMER_PARAMETER))
    return None


def methods_of(path: str) -> Iterator[str]:
    """The methods that the table has for the path."""
    for pattern, methods in _COMPILED:
        if pattern.match(path) is not None:
            yield from methods
