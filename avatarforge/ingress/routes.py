"""The calls about customers and their photos: from a request to `ProfilePhotos` and back to an answer."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.access.gate import TICKET
from avatarforge.domain import errors
from avatarforge.domain.customers import GRAMMAR, checked_customer_id
from avatarforge.domain.errors import InvalidCustomerId, InvalidRequest
from avatarforge.domain.identifiers import is_job_id
from avatarforge.ingress import sse
from avatarforge.ingress.answers import json_answer, service_of
from avatarforge.ingress.documentation import IMAGE, UPLOAD, told
from avatarforge.ingress.images import image_response, square_response
from avatarforge.ingress.news import LiveJob
from avatarforge.ingress.schemas import status_message
from avatarforge.ingress.service import ImageKind, Page, Stored
from avatarforge.ingress.submissions import MAX_KEY, number
from avatarforge.ingress.uploads import announced_length, receive_upload, upload_place
from avatarforge.messages import ProfilePhotoJobStatus, photo_url
from avatarforge.telemetry import traces

router = APIRouter()

_CUSTOMER_ID = "The customer's id, chosen by you and compared byte by byte."
_JOB_ID = "The job's id, as the upload's answer tells it."

CustomerId = Annotated[
    str,
    Path(
        alias="customerId",
        description=_CUSTOMER_ID,
        examples=["ana"],
        json_schema_extra={"pattern": f"^{GRAMMAR}$"},
    ),
]
JobId = Annotated[
    str,
    Path(
        alias="jobId",
        description=_JOB_ID,
        examples=["019a0f3c-7d5e-7c3a-9b1e-0d6f5a4b3c2d"],
    ),
]
Redirect = Annotated[
    bool,
    Query(
        description="Whether to send the client on where storage signs URLs; else the bytes come from here."
    ),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most entries of a page.")]

SUBMIT_PATH = "/customers/{customerId}"
STATUS_PATH = "/customers/{customerId}/photos/{jobId}/status"
CUSTOMER_PARAMETER = {
    "name": "customerId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{GRAMMAR}$"},
    "description": _CUSTOMER_ID,
}
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    "description": "Your name for this upload. Sent again within a day it makes no second job: the answer is "
    "the first one's job, with `Idempotent-Replayed: true`.",
}
STATUS_PARAMETERS = [
    CUSTOMER_PARAMETER,
    {
        "name": "jobId",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": _JOB_ID,
    },
    {
        "name": "waitSeconds",
        "in": "query",
        "schema": {"type": "number", "minimum": 0, "default": 0},
        "description": "Answer as soon as the job is terminal, and after this time at the latest. "
        "At most 60 unless the server is set up otherwise.",
    },
    {
        "name": "after",
        "in": "query",
        "schema": {"type": "integer", "minimum": 0},
        "description": "Answer as soon as the job's `seq` is higher than this: on any change. "
        "Waits as long as it may unless `waitSeconds` says otherwise.",
    },
]

TICKET_PARAMETER = {
    "name": TICKET,
    "in": "query",
    "schema": {"type": "string"},
    "description": "From `POST /customers/{customerId}/tickets`: in place of a key, which an EventSource "
    "cannot send.",
}

_NO_IMAGE = (
    errors.InvalidCustomerId,
    errors.InvalidRequest,
    errors.LinkInvalid,
    errors.JobNotFound,
    errors.ImageNotFound,
    errors.DatabaseUnavailable,
    errors.StorageUnavailable,
)

PHOTOS_OF_CUSTOMER = 20
"""Newest photos that a customer's page shows."""
MOST_DIGITS = 18
"""Digits of an event's number: what the database can count to."""


@router.get(
    STATUS_PATH,
    response_model=ProfilePhotoJobStatus,
    openapi_extra={"parameters": STATUS_PARAMETERS},
    responses=told(
        errors.InvalidCustomerId, errors.JobNotFound, errors.InvalidRequest, errors.DatabaseUnavailable
    ),
    tags=["photos"],
)
async def photo_status(request: Request) -> Response:
    """Where the job stands."""
    # Parameters are read by hand, so that this also works without FastAPI in front: see `create_api`.
    photos = service_of(request)
    path = request.path_params
    after = _seq("after", request.query_params.get("after")) if request.scope["query_string"] else None
    wait_seconds = _wait_seconds(request, photos.settings.ingress.max_wait_seconds, after)
    live = await photos.status(path["customerId"], path["jobId"], wait_seconds, after)
    return json_answer(status_message(live))


@router.post(
    SUBMIT_PATH,
    status_code=202,
    response_model=ProfilePhotoJobStatus,
    response_description="Accepted: the job is durable and will come to an end.",
    openapi_extra={"requestBody": UPLOAD, "parameters": [CUSTOMER_PARAMETER, KEY_PARAMETER]},
    responses=told(
        errors.InvalidCustomerId,
        errors.MalformedUpload,
        errors.PhotoTooLarge,
        errors.UnsupportedMediaType,
        errors.InvalidRequest,
        errors.MissingPhoto,
        errors.EmptyPhoto,
        errors.NotAnImage,
        errors.DamagedPhoto,
        errors.PhotoDimensions,
        errors.IdempotencyKeyReused,
        errors.IdempotencyKeyInFlight,
        errors.BacklogFull,
        errors.CustomerBacklogFull,
        errors.TooManyUploads,
        errors.DatabaseUnavailable,
        errors.StorageUnavailable,
        errors.StorageFull,
        errors.TrackerUnavailable,
        errors.ModelUnusable,
    ),
    tags=["photos"],
)
async def submit_photo(request: Request) -> Response:
    """Upload a photo and ask for an avatar. The customer comes into being with the first photo.

    `Location` names the job's status.
    """
    # Read by hand for the same reason as in `photo_status`.
    photos, customer_id = service_of(request), request.path_params["customerId"]
    # Before the body is read: nobody should upload 20 MB to hear that the address is wrong.
    checked_customer_id(customer_id)
    body, length = request.stream(), announced_length(request.headers)
    with traces.upload(request.headers.get("traceparent")):
        async with (
            upload_place(photos.uploads, body, length),
            receive_upload(
                body,
                request.headers.get("content-type", ""),
                photos.settings.upload,
                photos.upload_folder,
                length,
            ) as upload,
        ):
            submitted = await photos.submit(
                customer_id,
                upload.photo,
                upload.filename,
                upload.fields,
                request.headers.get("idempotency-key"),
            )
    headers = {"Idempotent-Replayed": "true"} if submitted.replayed else {}
    return accepted(submitted.live, headers)


@router.get(
    "/customers/{customerId}/photos/stream",
    response_class=Response,
    openapi_extra={"parameters": [TICKET_PARAMETER]},
    responses={
        200: {"description": "The stream.", "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "The job has ended, and the client has heard of it."},
        **told(
            errors.InvalidCustomerId,
            errors.JobNotFound,
            errors.InvalidRequest,
            errors.TooManyStreams,
            errors.TooManyStreamsOfCustomer,
            errors.DatabaseUnavailable,
            errors.TrackerUnavailable,
        ),
    },
    tags=["photos"],
)
async def stream_photos(
    request: Request,
    customer_id: CustomerId,
    job_id: Annotated[
        str | None,
        Query(alias="jobId", description="Only this job; the stream ends with the job."),
    ] = None,
    after: Annotated[
        str | None,
        Query(description="The last `seq` that is known: what came after it is told first."),
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="As `after`; browsers send it when they come back."),
    ] = None,
    previews: Annotated[bool, Query(description="Put a small picture into `progress`.")] = False,
) -> Response:
    """Server-sent events: a `snapshot` of unfinished jobs, then a `status` for every change.

    `id` is the change's `seq`: a client that comes back with it misses nothing. `progress` tells live steps;
    `erased` that a job is no more; `reset` brings a new snapshot where the log no longer reaches back;
    `overflow` asks a client that was too slow to resume.
    """
    photos = service_of(request)
    # The header is the newer one: an EventSource keeps its first URL.
    name, text = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
    items = photos.follow(
        customer_id,
        job_id,
        _seq(name, text),
        quiet_seconds=photos.settings.ingress.heartbeat_seconds,
    )
    return await sse.event_stream(items, previews=previews, life=photos.clients.following("sse"))


@router.get(
    "/customers/{customerId}/photos/{jobId}/original",
    response_class=Response,
    responses={**IMAGE, **told(*_NO_IMAGE)},
    tags=["images"],
)
async def original_image(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    redirect: Redirect = True,
    square: Annotated[
        bool, Query(description="Only the square that the avatar is made from, as a JPEG; no redirect.")
    ] = False,
) -> Response:
    """The photo as it was uploaded, without its metadata."""
    photos = service_of(request)
    if square:
        return await square_response(request, photos, customer_id, job_id)
    return await image_response(request, photos, customer_id, job_id, ImageKind.ORIGINAL, redirect=redirect)


@router.get(
    "/customers/{customerId}/photos/{jobId}/generated",
    response_class=Response,
    responses={**IMAGE, **told(*_NO_IMAGE)},
    tags=["images"],
)
async def generated_image(
    request: Request, customer_id: CustomerId, job_id: JobId, redirect: Redirect = True
) -> Response:
    """The avatar, once the job is DONE."""
    photos = service_of(request)
    return await image_response(request, photos, customer_id, job_id, ImageKind.GENERATED, redirect=redirect)


@router.get(
    "/customers/{customerId}/photos",
    response_model=rest_messages.PhotoPage,
    responses=told(
        errors.InvalidCustomerId, errors.CustomerNotFound, errors.InvalidRequest, errors.DatabaseUnavailable
    ),
    tags=["photos"],
)
async def list_photos(
    request: Request,
    customer_id: CustomerId,
    cursor: Annotated[
        str | None, Query(description="Photos older than this job's; `next` of a page has it.")
    ] = None,
    limit: Limit = 50,
) -> Response:
    """The customer's photos, newest first."""
    if cursor is not None and not is_job_id(cursor):
        raise InvalidRequest("cursor", cursor, "the id of a job, as the path in `next` has it")
    page = await service_of(request).photos(customer_id, cursor, limit)
    return json_answer(
        rest_messages.PhotoPage(photos=_statuses(page), next=_next_photos(customer_id, page, limit)),
    )


@router.get(
    "/customers",
    response_model=rest_messages.CustomerPage,
    responses=told(errors.InvalidRequest, errors.DatabaseUnavailable),
    tags=["customers"],
)
async def list_customers(
    request: Request,
    after: Annotated[
        str | None, Query(description="Customers whose ids come after this one; `next` of a page has it.")
    ] = None,
    limit: Limit = 50,
) -> Response:
    """All customers in the order of their ids, each with its latest photo."""
    if after is not None:
        _check_after(after)
    found = await service_of(request).customers(after, limit + 1)
    customers = tuple(_customer(stored) for stored in found[:limit])
    more = len(found) > limit
    following = _link("/customers", after=customers[-1].customer_id, limit=limit) if more else None
    return json_answer(rest_messages.CustomerPage(customers=customers, next=following))


@router.get(
    "/customers/{customerId}",
    response_model=rest_messages.CustomerWithPhotos,
    responses=told(errors.InvalidCustomerId, errors.CustomerNotFound, errors.DatabaseUnavailable),
    tags=["customers"],
)
async def show_customer(request: Request, customer_id: CustomerId) -> Response:
    """A customer with the latest state of the newest photos."""
    photos = service_of(request)
    stored = await photos.customer(customer_id)
    page = await photos.photos(customer_id, None, PHOTOS_OF_CUSTOMER)
    summary = stored.summary
    return json_answer(
        rest_messages.CustomerWithPhotos(
            customer_id=summary.customer_id,
            created_at=summary.created_at,
            photo_count=summary.jobs,
            latest_photo=None if stored.latest is None else status_message(stored.latest),
            photos=_statuses(page),
            next=_next_photos(customer_id, page, PHOTOS_OF_CUSTOMER),
        )
    )


def accepted(live: LiveJob, headers: Mapping[str, str] | None = None) -> Response:
    """202 for a job that is kept."""
    location = {"Location": photo_url(live.job, "status")}
    return json_answer(status_message(live), 202, {**location, **(headers or {})})


def _wait_seconds(request: Request, longest: int, after: int | None) -> float:
    default = "0" if after is None else str(longest)
    text = request.query_params.get("waitSeconds", default) if request.scope["query_string"] else default
    seconds = number(text)
    if seconds is None or not 0 <= seconds <= longest:
        raise InvalidRequest("waitSeconds", text, f"a number of seconds from 0 to {longest}")
    return seconds


def _seq(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise InvalidRequest(name, text, "the number of an event: a whole number from 0 on")
    return int(text)


def _statuses(page: Page) -> tuple[ProfilePhotoJobStatus, ...]:
    return tuple(status_message(live) for live in page.jobs)


def _customer(stored: Stored) -> rest_messages.Customer:
    return rest_messages.Customer(
        customer_id=stored.summary.customer_id,
        created_at=stored.summary.created_at,
        photo_count=stored.summary.jobs,
        latest_photo=None if stored.latest is None else status_message(stored.latest),
    )


def _next_photos(customer_id: str, page: Page, limit: int) -> str | None:
    if not page.more:
        return None
    return _link(f"/customers/{customer_id}/photos", cursor=page.jobs[-1].job.job_id, limit=limit)


def _link(path: str, **query: str | int) -> str:
    return f"{path}?{urlencode(query)}"


def _check_after(after: str) -> None:
    try:
        checked_customer_id(after)
    except InvalidCustomerId as error:
        raise InvalidRequest("after", after, f"a customer id: {error.expected}") from error
