"""Problem documents (RFC 9457), and the one table of the HTTP and gRPC status of each error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from avatarforge.access.permissions import list_methods
from avatarforge.domain import errors
from avatarforge.domain.customers import validate_customer_id
from avatarforge.domain.errors import AvatarForgeError, InvalidCustomerId, InvalidRequest, truncate_repr

MEDIA_TYPE = "application/problem+json"
ERROR_CODE = "avatarforge.error_code"
"""Under this name a request's scope has the code of the error that it was answered with."""

UNEXPECTED_ERROR = "The request met an error that we did not expect. It was logged."
"""The message for an error that the table does not have."""

log = structlog.get_logger(__name__)


_GRPC_STATUSES = {
    **dict.fromkeys((400, 413, 415, 422), "INVALID_ARGUMENT"),
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(slots=True)
class ProblemType:
    """How clients see an error."""

    http_status: int
    title: str
    members: tuple[str, ...] = ()
    """The error's attributes that are the problem's extension members."""
    grpc_status: str = ""
    """Name of a `grpc.StatusCode`, by default the one that goes with the HTTP status."""

    def __post_init__(self) -> None:
        self.grpc_status = self.grpc_status or _GRPC_STATUSES[self.http_status]


_PARAMETER = ("name", "value", "expected")
_LIMIT = ("limit", "retry_after")
_RETRY = ("part", "retry_after")
_MEMBER_NAMES = {"name": "field", "encoding": "contentEncoding", "status": "current", "seq": "afterSeq"}
"""Names of members that are not those of their attributes."""

PROBLEM_TYPES: dict[type[AvatarForgeError], ProblemType] = {
    AvatarForgeError: ProblemType(500, "Something went wrong on our side"),
    errors.Unauthenticated: ProblemType(401, "A valid key is needed"),
    errors.Forbidden: ProblemType(403, "This is beyond the key's scope"),
    errors.LimitReached: ProblemType(429, "A limit is reached", _LIMIT),
    errors.RateLimited: ProblemType(429, "Too many requests", _LIMIT),
    errors.ForeignSite: ProblemType(403, "The request is of another site", ("site",)),
    errors.LinkInvalid: ProblemType(403, "The link is not valid"),
    errors.LinksUnavailable: ProblemType(501, "Links are not set up"),
    errors.InvalidRequest: ProblemType(422, "A parameter is wrong", _PARAMETER),
    errors.UnknownField: ProblemType(422, "There is no such field", ("name", "expected")),
    errors.InvalidCustomerId: ProblemType(400, "The customer id is malformed", _PARAMETER),
    errors.InvalidUpload: ProblemType(422, "The upload cannot be taken"),
    errors.MissingPhoto: ProblemType(422, "The photo is missing"),
    errors.EmptyPhoto: ProblemType(422, "The photo is empty"),
    errors.PhotoTooLarge: ProblemType(413, "The photo is too large", ("limit",)),
    errors.NotAnImage: ProblemType(422, "The photo is not an image", ("filename",)),
    errors.UnsupportedPhoto: ProblemType(422, "The photo's format is not supported", ("filename", "kind")),
    errors.DamagedPhoto: ProblemType(422, "The photo is damaged", ("filename",)),
    errors.InvalidPhotoDimensions: ProblemType(
        422, "The photo's dimensions are out of bounds", ("width", "height", "min_side", "max_pixels")
    ),
    errors.UnsupportedMediaType: ProblemType(415, "The content type is not supported", ("content_type",)),
    errors.UnsupportedContentEncoding: ProblemType(
        415, "The content encoding is not supported", ("encoding",)
    ),
    errors.MalformedUpload: ProblemType(400, "The upload is malformed"),
    errors.NotFound: ProblemType(404, "Not found"),
    errors.CustomerNotFound: ProblemType(404, "No such customer", ("customer_id",)),
    errors.JobNotFound: ProblemType(404, "No such job", ("customer_id", "job_id")),
    errors.DeliveryNotFound: ProblemType(404, "No such delivery", ("job_id", "delivery_id")),
    errors.ImageNotFound: ProblemType(404, "No such image", ("job_id", "kind")),
    errors.ObjectNotFound: ProblemType(404, "No such object"),
    errors.IllegalTransition: ProblemType(409, "The job's state does not allow this", ("current",)),
    errors.JobNotFinished: ProblemType(409, "The job has not ended yet", ("job_id", "status")),
    errors.IdempotencyKeyReused: ProblemType(422, "The idempotency key is taken", ("job_id",)),
    errors.IdempotencyKeyInFlight: ProblemType(
        409, "The same upload is under way", ("retry_after",), grpc_status="ABORTED"
    ),
    errors.StreamOverflowed: ProblemType(429, "The client reads too slowly", ("seq",)),
    errors.BacklogFull: ProblemType(429, "Too many jobs have not ended yet", _LIMIT),
    errors.CustomerBacklogFull: ProblemType(429, "Too many jobs of the customer have not ended yet", _LIMIT),
    errors.TooManyUploads: ProblemType(429, "Too many uploads are under way", _LIMIT),
    errors.TooManyCrops: ProblemType(429, "Too many squares are being found", _LIMIT),
    errors.TooManyCalls: ProblemType(429, "Too many calls without a key are under way", _LIMIT),
    errors.TooManyStreams: ProblemType(429, "Too many streams are open", _LIMIT),
    errors.TooManyStreamsOfCustomer: ProblemType(429, "Too many streams of the customer are open", _LIMIT),
    errors.Unavailable: ProblemType(503, "Not available at present", _RETRY),
    errors.DatabaseUnavailable: ProblemType(503, "The database is not available", _RETRY),
    errors.StorageUnavailable: ProblemType(503, "Object storage is not available", _RETRY),
    errors.StorageFull: ProblemType(503, "Object storage is full", _RETRY),
    errors.TrackerUnavailable: ProblemType(503, "The job tracker is not available", _RETRY),
    errors.ShardLeased: ProblemType(503, "Another cluster serves this", _RETRY),
    errors.ShardCountChanged: ProblemType(503, "The number of shards is another", _RETRY),
    errors.DatabaseInUse: ProblemType(409, "A cluster runs on the database"),
    errors.StaleEpoch: ProblemType(503, "The job tracker is starting again"),
    errors.ModelMissing: ProblemType(503, "No model serves", ("model",)),
    errors.ModelUnusable: ProblemType(
        500, "The model cannot be used", ("model",), grpc_status="FAILED_PRECONDITION"
    ),
    errors.ImageNotFinite: ProblemType(500, "The model made no image", ("model",)),
    errors.ImageWithheld: ProblemType(
        422, "The image was withheld", ("model",), grpc_status="FAILED_PRECONDITION"
    ),
    errors.RemoteUnavailable: ProblemType(503, "The remote server is not available"),
    errors.RemoteFailed: ProblemType(503, "The remote server failed"),
    errors.RemoteRefused: ProblemType(500, "The remote server refused the request"),
    errors.SigningFailed: ProblemType(503, "The avatar could not be signed"),
    errors.DeviceFailed: ProblemType(503, "The device failed"),
    errors.DeviceLost: ProblemType(503, "The device is lost"),
    errors.PipelineFailed: ProblemType(500, "The generation broke"),
    errors.DeadlineExceeded: ProblemType(504, "The job's time was over"),
    errors.GenerationCancelled: ProblemType(409, "The generation was cancelled", grpc_status="CANCELLED"),
}
"""Has a row for every class of error."""


def problem_type_of(error: AvatarForgeError | type[AvatarForgeError]) -> ProblemType:
    """Return the error's row, or that of its nearest ancestor."""
    kind = error if isinstance(error, type) else type(error)
    return next(PROBLEM_TYPES[ancestor] for ancestor in kind.__mro__ if ancestor in PROBLEM_TYPES)


def http_status_of(code: str) -> int:
    """Return the HTTP status of a code; 500 for one that no class has, such as a lost worker's."""
    return next((row.http_status for kind, row in PROBLEM_TYPES.items() if kind.code == code), 500)


def extension_members(error: AvatarForgeError) -> dict[str, Any]:
    """Return the error's extension members. Long text from outside is truncated."""
    return {
        _member_name(attribute): _truncate_member(getattr(error, attribute))
        for attribute in problem_type_of(error).members
    }


def problem(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    instance: str,
    extensions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build a problem document. `code` is stable, `detail` for people, `instance` the request's path."""
    return {
        "type": f"urn:avatarforge:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        **(extensions or {}),
    }


def problem_for(error: AvatarForgeError, instance: str) -> dict[str, Any]:
    problem_type = problem_type_of(error)
    return problem(
        status=problem_type.http_status,
        code=error.code,
        title=problem_type.title,
        detail=str(error),
        instance=instance,
        extensions=extension_members(error),
    )


def problem_response(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(document),
        status_code=document["status"],
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def internal_error_response(scope: Scope) -> Response:
    """Build the answer to an unexpected error: it tells nothing about what broke."""
    scope[ERROR_CODE] = AvatarForgeError.code
    return problem_response(
        problem(
            status=500,
            code=AvatarForgeError.code,
            title=PROBLEM_TYPES[AvatarForgeError].title,
            detail=UNEXPECTED_ERROR,
            instance=_path(scope),
        )
    )


def find_customer_id_error(scope: Scope) -> InvalidCustomerId | None:
    """Check the customer id in the path as it was sent, before `%2F` became a slash."""
    segments = bytes(scope.get("raw_path") or scope["path"].encode()).split(b"/")
    if len(segments) < 3 or segments[1] != b"customers":
        return None
    try:
        validate_customer_id(unquote(segments[2].decode("ascii", "replace"), errors="replace"))
    except InvalidCustomerId as error:
        return error
    return None


def add_problem_handlers(api: FastAPI) -> None:
    """Answer domain errors, FastAPI's validation errors and routing errors with problem documents."""
    api.add_exception_handler(AvatarForgeError, _handle_domain_error)
    api.add_exception_handler(RequestValidationError, _handle_validation_error)
    api.add_exception_handler(HTTPException, _handle_http_error)


async def _handle_domain_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, AvatarForgeError):
        raise error
    return error_response(error, request.scope)


def error_response(error: AvatarForgeError, scope: Scope) -> Response:
    """Build the answer to an error, with Retry-After for a temporary one. Errors of the server are logged."""
    document = problem_for(error, _path(scope))
    scope[ERROR_CODE] = error.code
    headers = {}
    if "retryAfter" in document or document["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(document.get("retryAfter", 5))
    if document["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning(
            "request refused",
            code=error.code,
            reason=getattr(error, "reason", str(error)),
            # Not `path`, by which repeated warnings are told apart: clients choose it.
            request_path=_path(scope),
        )
    return problem_response(document, headers)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    fault = error.errors()[0]
    name = str(fault["loc"][-1])
    value = None if fault["type"] == "missing" else fault.get("input")
    return error_response(InvalidRequest(name, value, _describe_constraint(fault)), request.scope)


def _describe_constraint(fault: Mapping[str, Any]) -> str:
    """Word pydantic's constraint as the end of "it must be …"."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "int_parsing" | "int_parsing_size":
            return "a whole number"
        case "float_parsing" | "finite_number":
            return "a number"
        case "missing":
            return "given"
    return f"otherwise: {fault['msg']}"


async def _handle_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.NOT_FOUND:
        id_error = find_customer_id_error(request.scope)
        if id_error is not None:
            return error_response(id_error, request.scope)
    return http_error_response(error, request.scope)


def http_error_response(error: HTTPException, scope: Scope) -> Response:
    """Build the answer to an HTTP error of the framework."""
    phrase, headers = HTTPStatus(error.status_code).phrase, dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework knows those of one route, and a path may have several.
        headers["Allow"] = ", ".join(list_methods(scope["path"]))
    document = problem(
        status=error.status_code,
        code=phrase.lower().replace(" ", "_"),
        title=phrase,
        detail=_detail(error, scope, headers.get("Allow")),
        instance=_path(scope),
    )
    return problem_response(document, headers)


def _detail(error: HTTPException, scope: Scope, allowed: str | None) -> str:
    path = truncate_repr(_path(scope))
    match error.status_code:
        case 404:
            return f"There is nothing at {path}. The calls are listed at /docs."
        case 405:
            return f"{scope['method']} is not allowed at {path}" + (
                f", but {allowed} is." if allowed else "."
            )
    return error.detail


def _path(scope: Scope) -> str:
    return _truncate(str(scope["path"]), 200)


def _member_name(attribute: str) -> str:
    return _MEMBER_NAMES.get(attribute) or to_camel(attribute)


def _truncate_member(member: object) -> object:
    return _truncate(member, 80) if isinstance(member, str) else member


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
