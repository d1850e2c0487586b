"""Problem documents (RFC 9457): the one table that says which error is which HTTP and gRPC answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from avatarforge.domain import errors
from avatarforge.domain.customers import checked_customer_id
from avatarforge.domain.errors import AvatarForgeError, InvalidCustomerId, InvalidRequest, shown
from avatarforge.ingress.counting import REFUSED

MEDIA_TYPE = "application/problem+json"

UNEXPECTED = "The request met an error that we did not expect. It was logged."
"""All that a client hears of an error that no table knows."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How an error is told on the wire."""

    http: int
    grpc: str
    """Name of a `grpc.StatusCode`."""
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Members that the problem carries beside the standard ones: their JSON name to the error's attribute."""


_PARAMETER = {"field": "name", "value": "value", "expected": "expected"}
_LIMIT = {"limit": "limit", "retryAfter": "retry_after"}
_RETRY = {"part": "part", "retryAfter": "retry_after"}

ANSWERS: dict[type[AvatarForgeError], Answer] = {
    AvatarForgeError: Answer(500, "INTERNAL", "Something went wrong on our side"),
    errors.Unauthenticated: Answer(401, "UNAUTHENTICATED", "A valid key is needed"),
    errors.Forbidden: Answer(403, "PERMISSION_DENIED", "This is beyond the key's scope"),
    errors.RateLimited: Answer(
        429, "RESOURCE_EXHAUSTED", "Too many requests", {"limit": "rate", "retryAfter": "retry_after"}
    ),
    errors.ForeignSite: Answer(403, "PERMISSION_DENIED", "The request is of another site", {"site": "site"}),
    errors.LinkInvalid: Answer(403, "PERMISSION_DENIED", "The link is not valid"),
    errors.LinksUnavailable: Answer(501, "UNIMPLEMENTED", "Links are not set up"),
    errors.InvalidRequest: Answer(422, "INVALID_ARGUMENT", "A parameter is wrong", _PARAMETER),
    errors.InvalidCustomerId: Answer(400, "INVALID_ARGUMENT", "The customer id is malformed", _PARAMETER),
    errors.MissingPhoto: Answer(422, "INVALID_ARGUMENT", "The photo is missing"),
    errors.EmptyPhoto: Answer(422, "INVALID_ARGUMENT", "The photo is empty"),
    errors.PhotoTooLarge: Answer(413, "INVALID_ARGUMENT", "The photo is too large", {"limit": "limit"}),
    errors.NotAnImage: Answer(
        422, "INVALID_ARGUMENT", "The photo is not a picture", {"filename": "filename"}
    ),
    errors.DamagedPhoto: Answer(422, "INVALID_ARGUMENT", "The photo is damaged", {"filename": "filename"}),
    errors.PhotoDimensions: Answer(
        422,
        "INVALID_ARGUMENT",
        "The photo's dimensions are out of bounds",
        {"width": "width", "height": "height", "minSide": "shortest", "maxPixels": "most_pixels"},
    ),
    errors.UnsupportedMediaType: Answer(
        415, "INVALID_ARGUMENT", "The content type is not supported", {"contentType": "content_type"}
    ),
    errors.MalformedUpload: Answer(400, "INVALID_ARGUMENT", "The upload is malformed"),
    errors.CustomerNotFound: Answer(404, "NOT_FOUND", "No such customer", {"customerId": "customer_id"}),
    errors.JobNotFound: Answer(
        404, "NOT_FOUND", "No such job", {"customerId": "customer_id", "jobId": "job_id"}
    ),
    errors.DeliveryNotFound: Answer(
        404, "NOT_FOUND", "No such delivery", {"jobId": "job_id", "deliveryId": "delivery_id"}
    ),
    errors.ImageNotFound: Answer(404, "NOT_FOUND", "No such image", {"jobId": "job_id", "kind": "kind"}),
    errors.ObjectNotFound: Answer(404, "NOT_FOUND", "No such object"),
    errors.IllegalTransition: Answer(
        409, "FAILED_PRECONDITION", "The job's state does not allow this", {"current": "current"}
    ),
    errors.NotFinished: Answer(
        409, "FAILED_PRECONDITION", "The job has not ended yet", {"jobId": "job_id", "current": "status"}
    ),
    errors.IdempotencyKeyReused: Answer(
        422, "INVALID_ARGUMENT", "The idempotency key is taken", {"jobId": "job_id"}
    ),
    errors.IdempotencyKeyInFlight: Answer(
        409, "ABORTED", "The same upload is under way", {"retryAfter": "retry_after"}
    ),
    errors.StreamOverflowed: Answer(
        429, "RESOURCE_EXHAUSTED", "The client reads too slowly", {"afterSeq": "seq"}
    ),
    errors.BacklogFull: Answer(429, "RESOURCE_EXHAUSTED", "Too many jobs have not ended yet", _LIMIT),
    errors.CustomerBacklogFull: Answer(
        429, "RESOURCE_EXHAUSTED", "Too many jobs of the customer have not ended yet", _LIMIT
    ),
    errors.TooManyUploads: Answer(429, "RESOURCE_EXHAUSTED", "Too many uploads are under way", _LIMIT),
    errors.TooManyStreams: Answer(429, "RESOURCE_EXHAUSTED", "Too many streams are open", _LIMIT),
    errors.TooManyStreamsOfCustomer: Answer(
        429, "RESOURCE_EXHAUSTED", "Too many streams of the customer are open", _LIMIT
    ),
    errors.Unavailable: Answer(503, "UNAVAILABLE", "Not available at present", _RETRY),
    errors.DatabaseUnavailable: Answer(503, "UNAVAILABLE", "The database is not available", _RETRY),
    errors.StorageUnavailable: Answer(503, "UNAVAILABLE", "Object storage is not available", _RETRY),
    errors.StorageFull: Answer(503, "UNAVAILABLE", "Object storage is full", _RETRY),
    errors.TrackerUnavailable: Answer(503, "UNAVAILABLE", "The job tracker is not available", _RETRY),
    errors.Overtaken: Answer(503, "UNAVAILABLE", "The job tracker is starting again"),
    errors.ModelMissing: Answer(503, "UNAVAILABLE", "No model serves", {"model": "model"}),
    errors.ModelUnusable: Answer(500, "FAILED_PRECONDITION", "The model cannot be used", {"model": "model"}),
    errors.ImageNotFinite: Answer(500, "INTERNAL", "The model made no picture", {"model": "model"}),
    errors.ImageWithheld: Answer(422, "FAILED_PRECONDITION", "The picture was withheld", {"model": "model"}),
    errors.RemoteUnavailable: Answer(503, "UNAVAILABLE", "The remote server is not available"),
    errors.RemoteFailed: Answer(503, "UNAVAILABLE", "The remote server failed"),
    errors.RemoteRefused: Answer(500, "INTERNAL", "The remote server refused the request"),
    errors.SigningFailed: Answer(503, "UNAVAILABLE", "The avatar could not be signed"),
    errors.DeviceFailed: Answer(503, "UNAVAILABLE", "The device failed"),
    errors.GenerationBroke: Answer(500, "INTERNAL", "The generation broke"),
    errors.DeadlineExceeded: Answer(504, "DEADLINE_EXCEEDED", "The job's time was over"),
    errors.GenerationCancelled: Answer(409, "CANCELLED", "The generation was cancelled"),
}
"""Every class of the family, and what it is on the wire."""


def answer_to(error: AvatarForgeError | type[AvatarForgeError]) -> Answer:
    """The error's row, or that of its nearest ancestor."""
    kind = error if isinstance(error, type) else type(error)
    return next(ANSWERS[ancestor] for ancestor in kind.__mro__ if ancestor in ANSWERS)


def http_status_of(code: str) -> int:
    """The status of errors with this code; 500 for one that no error here has, such as a lost worker's."""
    return next((answer.http for kind, answer in ANSWERS.items() if kind.code == code), 500)


def facts_of(error: AvatarForgeError) -> dict[str, Any]:
    """What the error is about, for programs. What came from outside is cut short."""
    return {name: _cut(getattr(error, attribute)) for name, attribute in answer_to(error).facts.items()}


def problem(
    *, status: int, code: str, title: str, detail: str, instance: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A problem document: `code` is stable, `detail` is for people, `instance` is the request's path."""
    return {
        "type": f"urn:avatarforge:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        **(facts or {}),
    }


def problem_of(error: AvatarForgeError, instance: str) -> dict[str, Any]:
    """The error as a problem document, its facts as members."""
    answer = answer_to(error)
    return problem(
        status=answer.http,
        code=error.code,
        title=answer.title,
        detail=str(error),
        instance=instance,
        facts=facts_of(error),
    )


def problem_response(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(document),
        status_code=document["status"],
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def unexpected_response(scope: Scope) -> Response:
    """The last resort: says that it is our fault, and nothing about what broke."""
    scope[REFUSED] = AvatarForgeError.code
    return problem_response(
        problem(
            status=500,
            code=AvatarForgeError.code,
            title=ANSWERS[AvatarForgeError].title,
            detail=UNEXPECTED,
            instance=_path(scope),
        )
    )


def misnamed_customer(scope: Scope) -> InvalidCustomerId | None:
    """What is wrong with the customer id of the path as it was sent, before `%2F` became a slash."""
    segments = bytes(scope.get("raw_path") or scope["path"].encode()).split(b"/")
    if len(segments) < 3 or segments[1] != b"customers":
        return None
    try:
        checked_customer_id(unquote(segments[2].decode("ascii", "replace"), errors="replace"))
    except InvalidCustomerId as error:
        return error
    return None


def add_problem_handlers(api: FastAPI) -> None:
    """Answer every error of ours, of the framework's validation and of its routing with a problem."""
    api.add_exception_handler(AvatarForgeError, _on_our_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    api.add_exception_handler(HTTPException, _on_http_error)


async def _on_our_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, AvatarForgeError):
        raise error
    return error_response(error, request.scope)


def error_response(error: AvatarForgeError, scope: Scope) -> Response:
    """The answer to the error: what passes by itself has Retry-After, and whatever is our fault is logged."""
    document = problem_of(error, _path(scope))
    scope[REFUSED] = error.code
    headers = {}
    if "retryAfter" in document or document["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(document.get("retryAfter", 5))
    if document["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning(
            "request refused", code=error.code, reason=getattr(error, "reason", str(error)), path=_path(scope)
        )
    return problem_response(document, headers)


async def _on_invalid_parameter(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    fault = error.errors()[0]
    name = str(fault["loc"][-1])
    value = None if fault["type"] == "missing" else fault.get("input")
    return error_response(InvalidRequest(name, value, _expected(fault)), request.scope)


def _expected(fault: Mapping[str, Any]) -> str:
    """What pydantic wanted, as the end of "it must be …"."""
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


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.NOT_FOUND:
        misnamed = misnamed_customer(request.scope)
        if misnamed is not None:
            return error_response(misnamed, request.scope)
    return http_error_response(error, request.scope)


def http_error_response(error: HTTPException, scope: Scope) -> Response:
    """The framework's error as a problem."""
    phrase = HTTPStatus(error.status_code).phrase
    document = problem(
        status=error.status_code,
        code=phrase.lower().replace(" ", "_"),
        title=phrase,
        detail=_detail(error, scope),
        instance=_path(scope),
    )
    return problem_response(document, error.headers)


def _detail(error: HTTPException, scope: Scope) -> str:
    path = shown(_path(scope))
    match error.status_code:
        case 404:
            return f"There is nothing at {path}. The calls are listed at /docs."
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            return f"{scope['method']} is not allowed at {path}" + (
                f", but {allowed} is." if allowed else "."
            )
    return error.detail


def _path(scope: Scope) -> str:
    return _cut_text(str(scope["path"]), 200)


def _cut(fact: object) -> object:
    return _cut_text(fact, 80) if isinstance(fact, str) else fact


def _cut_text(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
