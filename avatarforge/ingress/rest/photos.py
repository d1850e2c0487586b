"""The REST calls about customers and their photos."""

import re
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.access.authorizer import TICKET
from avatarforge.domain import errors
from avatarforge.domain.customers import GRAMMAR, validate_customer_id
from avatarforge.domain.errors import InvalidCustomerId, InvalidRequest, UnknownField
from avatarforge.domain.jobs import is_job_id
from avatarforge.ingress.rest import sse
from avatarforge.ingress.rest.images import ImageAnswer
from avatarforge.ingress.rest.openapi import (
    ACCEPTED,
    IMAGE,
    PHOTO_ALONE,
    STREAM_EVENT,
    UPLOAD,
    error_responses,
)
from avatarforge.ingress.rest.responses import crop_message, get_service, json_response
from avatarforge.ingress.service import CustomerDetails, Page, Submitted
from avatarforge.ingress.upload.form import MAX_KEY_CHARACTERS, parse_number
from avatarforge.ingress.upload.multipart import PHOTO, acquire_upload_slot, receive_upload
from avatarforge.messages import PUBLIC_PREFIX, ProfilePhotoJobStatus, photo_url
from avatarforge.settings import IngressSettings
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
    str, Path(alias="jobId", description=_JOB_ID, examples=["019a0f3c-7d5e-7c3a-9b1e-0d6f5a4b3c2d"])
]
Redirect = Annotated[
    bool,
    Query(
        description="Whether to send the client on where storage signs URLs; else the bytes come from here."
    ),
]
Download = Annotated[
    bool,
    Query(description="Whether browsers save the image as a file with a name of its own; no redirect then."),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most entries of a page.")]

MAX_FOUND_PHOTOS = 10
MAX_SEQ_DIGITS = 18
"""Digits of an event's number: the database counts no further."""
MAX_WAIT_SECONDS = IngressSettings().max_wait_seconds
"""As documented; a server may be set up otherwise."""
_ID_PREFIX = "^[0-9a-f-]{8,36}$"
KEY_SCHEMA = {"type": "string", "pattern": f"^[ -~]{{1,{MAX_KEY_CHARACTERS}}}$"}
_SEQ_PATTERN = {"pattern": f"^[0-9]{{1,{MAX_SEQ_DIGITS}}}$"}

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
    "schema": KEY_SCHEMA,
    "description": "Your name for this upload. Sent again within a day it makes no second job: the answer is "
    "the first one's job, with `Idempotent-Replayed: true`.",
}
STATUS_PARAMETERS = [
    CUSTOMER_PARAMETER,
    {"name": "jobId", "in": "path", "required": True, "schema": {"type": "string"}, "description": _JOB_ID},
    {
        "name": "waitSeconds",
        "in": "query",
        "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 0},
        "description": "Answer as soon as the job is terminal, and after this time at the latest. "
        "At most 60 unless the server is set up otherwise.",
    },
    {
        "name": "after",
        "in": "query",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**MAX_SEQ_DIGITS - 1},
        "description": "Answer as soon as the job's `seq` is higher than this: on any change. "
        "Waits as long as it may unless `waitSeconds` says otherwise, and not for a job that has ended: what "
        "is kept of it later is told by the stream.",
    },
]

TICKET_PARAMETER = {
    "name": TICKET,
    "in": "query",
    "schema": {"type": "string"},
    "description": "From `POST /customers/{customerId}/tickets`: in place of a key, which an EventSource "
    "cannot send.",
}

_IMAGE_RESPONSES = {
    **IMAGE,
    **error_responses(
        errors.InvalidRequest,
        errors.LinkInvalid,
        errors.JobNotFound,
        errors.ImageNotFound,
        errors.StorageUnavailable,
    ),
}

_UPLOAD_ERRORS = (
    errors.MalformedUpload,
    errors.PhotoTooLarge,
    errors.UnsupportedMediaType,
    errors.UnsupportedContentEncoding,
    errors.InvalidRequest,
    errors.UnknownField,
    errors.MissingPhoto,
    errors.EmptyPhoto,
    errors.NotAnImage,
    errors.UnsupportedPhoto,
    errors.DamagedPhoto,
    errors.InvalidPhotoDimensions,
    errors.TooManyUploads,
    errors.StorageUnavailable,
    errors.StorageFull,
)

PHOTOS_PER_CUSTOMER = 20
"""Newest photos that a customer's page shows."""


@router.get(
    STATUS_PATH,
    response_model=ProfilePhotoJobStatus,
    openapi_extra={"parameters": STATUS_PARAMETERS},
    responses=error_responses(errors.JobNotFound, errors.InvalidRequest),
    tags=["photos"],
)
async def get_status(request: Request) -> Response:
    """Get the job's status."""
    # Parameters are read by hand, so that this also works without FastAPI in front: see `create_api`.
    photos = get_service(request)
    path = request.path_params
    after = _parse_seq("after", request.query_params.get("after")) if request.scope["query_string"] else None
    wait_seconds = _parse_wait_seconds(request, photos.settings.ingress.max_wait_seconds, after)
    live = await photos.status(path["customerId"], path["jobId"], wait_seconds, after)
    return json_response(live.to_message())


@router.post(
    SUBMIT_PATH,
    status_code=202,
    response_model=ProfilePhotoJobStatus,
    response_description="Accepted: the job is durable and will come to an end.",
    openapi_extra={"requestBody": UPLOAD, "parameters": [CUSTOMER_PARAMETER, KEY_PARAMETER]},
    responses=ACCEPTED
    | error_responses(
        *_UPLOAD_ERRORS,
        errors.IdempotencyKeyReused,
        errors.IdempotencyKeyInFlight,
        errors.BacklogFull,
        errors.CustomerBacklogFull,
        errors.TrackerUnavailable,
        errors.ModelUnusable,
    ),
    tags=["photos"],
)
async def submit_photo(request: Request) -> Response:
    """Upload a photo and ask for an avatar. The customer comes into being with the first photo.

    `Location` names the job's status.
    """
    # Read by hand for the same reason as in `get_status`.
    photos, customer_id = get_service(request), request.path_params["customerId"]
    # Before the body is read: nobody should upload 20 MB to hear that the address is wrong.
    validate_customer_id(customer_id)
    with traces.upload(request.headers.get("traceparent")):
        async with (
            acquire_upload_slot(photos.upload_limit, request),
            receive_upload(
                request.stream(), request.headers, photos.settings.upload, photos.upload_folder
            ) as upload,
        ):
            submitted = await photos.submit(
                customer_id,
                upload.photo,
                upload.filename,
                upload.fields,
                request.headers.get("idempotency-key"),
            )
    return respond_accepted(submitted)


@router.post(
    "/crop",
    response_model=rest_messages.CropMessage,
    openapi_extra={"requestBody": PHOTO_ALONE},
    responses=error_responses(*_UPLOAD_ERRORS, errors.TooManyCrops),
    tags=["photos"],
)
async def find_crop(
    request: Request,
    preview: Annotated[bool, Query(description="Show the square, too, for programs that cannot.")] = False,
) -> Response:
    """Find the square that a photo would be cropped to: around the face, where there is one.

    Nothing is kept. A copy of the photo whose longer side has 1024 pixels is enough.
    """
    photos = get_service(request)
    async with (
        acquire_upload_slot(photos.crop_limit, request),
        acquire_upload_slot(photos.upload_limit, request),
        receive_upload(
            request.stream(), request.headers, photos.settings.upload, photos.upload_folder
        ) as upload,
    ):
        for name in upload.fields:
            raise UnknownField(name, None, f"{PHOTO} alone")
        found = await photos.find_crop(upload.photo, upload.filename, preview=preview)
    return json_response(crop_message(found))


@router.get(
    "/customers/{customerId}/photos/stream",
    response_class=Response,
    openapi_extra={"parameters": [TICKET_PARAMETER]},
    responses={
        200: {"description": "The stream.", "content": {sse.MEDIA_TYPE: {"schema": {"$ref": STREAM_EVENT}}}},
        204: {"description": "The job has ended, and the client has heard of it."},
        **error_responses(
            errors.JobNotFound,
            errors.InvalidRequest,
            errors.TooManyStreams,
            errors.TooManyStreamsOfCustomer,
            errors.TrackerUnavailable,
        ),
    },
    tags=["photos"],
)
async def stream_events(
    request: Request,
    customer_id: CustomerId,
    job_id: Annotated[
        str | None, Query(alias="jobId", description="Only this job; the stream ends with the job.")
    ] = None,
    after: Annotated[
        str | None,
        Query(
            description="The last `seq` that is known: what came after it is told first.",
            json_schema_extra=_SEQ_PATTERN,
        ),
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="As `after`; browsers send it when they come back.",
            json_schema_extra=_SEQ_PATTERN,
        ),
    ] = None,
    previews: Annotated[bool, Query(description="Put a small image into `progress`.")] = False,
) -> Response:
    """Server-sent events: a `snapshot` of unfinished jobs, then a `status` for every change.

    `id` is the change's `seq`: a client that comes back with it misses nothing. `progress` tells live steps;
    `erased` that a job is no more; `reset` brings a new snapshot where the log no longer reaches back;
    `overflow` asks a client that was too slow to resume.
    """
    photos = get_service(request)
    # The header is the newer one: an EventSource keeps its first URL.
    name, text = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
    items = photos.streams.follow(
        customer_id,
        job_id,
        _parse_seq(name, text),
        heartbeat_seconds=photos.settings.ingress.heartbeat_seconds,
    )
    try:
        return await sse.event_stream(items, previews=previews, life=photos.open_streams.track("sse"))
    except InvalidRequest as error:
        if error.name != "after":
            raise
        raise InvalidRequest(name, error.value, error.expected) from error


@router.get(
    "/customers/{customerId}/photos/{jobId}/original",
    response_class=Response,
    responses=_IMAGE_RESPONSES,
    tags=["images"],
)
async def get_original(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    redirect: Redirect = True,
    square: Annotated[
        bool, Query(description="Only the square that the avatar is made from, as a JPEG; no redirect.")
    ] = False,
    download: Download = False,
) -> Response:
    """Get the photo as it was uploaded, without its metadata."""
    answer = ImageAnswer(request, get_service(request), customer_id, job_id, download=download)
    if square:
        return await answer.square()
    return await answer.original(redirect=redirect)


@router.get(
    "/customers/{customerId}/photos/{jobId}/generated",
    response_class=Response,
    responses=_IMAGE_RESPONSES,
    tags=["images"],
)
async def get_avatar(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    redirect: Redirect = True,
    download: Download = False,
) -> Response:
    """Get the avatar, once the job is DONE: of several that which the client keeps, or else the first."""
    answer = ImageAnswer(request, get_service(request), customer_id, job_id, download=download)
    return await answer.avatar(redirect=redirect)


@router.get(
    "/customers/{customerId}/photos/{jobId}/generated/{index}",
    response_class=Response,
    responses=_IMAGE_RESPONSES,
    tags=["images"],
)
async def get_image(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    index: Annotated[int, Path(ge=0, description="The image's `index` in the job's `images`.")],
    redirect: Redirect = True,
    download: Download = False,
) -> Response:
    """Get one of the job's images, as soon as it is among the job's `images`."""
    answer = ImageAnswer(request, get_service(request), customer_id, job_id, download=download)
    return await answer.avatar(index, redirect=redirect)


@router.get(
    "/customers/{customerId}/photos",
    response_model=rest_messages.PhotoPage,
    responses=error_responses(errors.CustomerNotFound, errors.InvalidRequest),
    tags=["photos"],
)
async def list_photos(
    request: Request,
    customer_id: CustomerId,
    cursor: Annotated[
        str | None,
        Query(
            description="Photos older than this job's; `next` of a page has it.",
            json_schema_extra={"format": "uuid"},
        ),
    ] = None,
    limit: Limit = 50,
) -> Response:
    """List the customer's photos, newest first."""
    if cursor is not None and not is_job_id(cursor):
        raise InvalidRequest("cursor", cursor, "the id of a job, as the path in `next` has it")
    page = await get_service(request).photos(customer_id, cursor, limit)
    return json_response(
        rest_messages.PhotoPage(photos=_statuses(page), next=_next_photos(customer_id, page, limit))
    )


@router.get(
    "/photos",
    response_model=rest_messages.FoundPhotos,
    responses=error_responses(errors.InvalidRequest),
    tags=["photos"],
)
async def find_photos(
    request: Request,
    id_prefix: Annotated[
        str,
        Query(
            alias="idPrefix",
            description="The job's id, or the first 8 characters of it or more.",
            json_schema_extra={"pattern": _ID_PREFIX},
        ),
    ],
) -> Response:
    """Find the jobs of all customers whose ids begin so: at most ten."""
    if not re.fullmatch(_ID_PREFIX, id_prefix):
        raise InvalidRequest("idPrefix", id_prefix, "8 to 36 hex digits and hyphens, as ids begin")
    found = await get_service(request).find_jobs(id_prefix, MAX_FOUND_PHOTOS)
    return json_response(rest_messages.FoundPhotos(photos=tuple(live.to_message() for live in found)))


@router.get(
    "/customers",
    response_model=rest_messages.CustomerPage,
    responses=error_responses(errors.InvalidRequest),
    tags=["customers"],
)
async def list_customers(
    request: Request,
    after: Annotated[
        str | None,
        Query(
            description="Customers whose ids come after this one; `next` of a page has it.",
            json_schema_extra={"pattern": f"^{GRAMMAR}$"},
        ),
    ] = None,
    limit: Limit = 50,
) -> Response:
    """List all customers in the order of their ids, each with its latest photo."""
    if after is not None:
        _check_after(after)
    found = await get_service(request).customers(after, limit + 1)
    customers = tuple(_customer(stored) for stored in found[:limit])
    more = len(found) > limit
    following = _link("/customers", after=customers[-1].customer_id, limit=limit) if more else None
    return json_response(rest_messages.CustomerPage(customers=customers, next=following))


@router.get(
    "/customers/{customerId}",
    response_model=rest_messages.CustomerWithPhotos,
    responses=error_responses(errors.CustomerNotFound),
    tags=["customers"],
)
async def get_customer(request: Request, customer_id: CustomerId) -> Response:
    """Get a customer with the latest state of the newest photos."""
    photos = get_service(request)
    customer = _customer(await photos.customer(customer_id))
    page = await photos.photos(customer_id, None, PHOTOS_PER_CUSTOMER)
    return json_response(
        rest_messages.CustomerWithPhotos(
            **dict(customer),
            photos=_statuses(page),
            next=_next_photos(customer_id, page, PHOTOS_PER_CUSTOMER),
        )
    )


def respond_accepted(submitted: Submitted) -> Response:
    """Answer 202 for a job that is durable."""
    live = submitted.live
    replayed = {"Idempotent-Replayed": "true"} if submitted.replayed else {}
    location = PUBLIC_PREFIX.get() + photo_url(live.job, "status")
    return json_response(live.to_message(), 202, {"Location": location, **replayed})


def _parse_wait_seconds(request: Request, longest: int, after: int | None) -> float:
    default = "0" if after is None else str(longest)
    text = request.query_params.get("waitSeconds", default) if request.scope["query_string"] else default
    seconds = parse_number(text)
    if seconds is None or not 0 <= seconds <= longest:
        raise InvalidRequest("waitSeconds", text, f"a number of seconds from 0 to {longest}")
    return seconds


def _parse_seq(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_SEQ_DIGITS):
        raise InvalidRequest(name, text, "the number of an event: a whole number from 0 on")
    return int(text)


def _statuses(page: Page) -> tuple[ProfilePhotoJobStatus, ...]:
    return tuple(live.to_message() for live in page.jobs)


def _customer(stored: CustomerDetails) -> rest_messages.Customer:
    return rest_messages.Customer(
        customer_id=stored.summary.customer_id,
        created_at=stored.summary.created_at,
        photo_count=stored.summary.jobs,
        latest_photo=None if stored.latest is None else stored.latest.to_message(),
    )


def _next_photos(customer_id: str, page: Page, limit: int) -> str | None:
    if not page.more:
        return None
    return _link(f"/customers/{customer_id}/photos", cursor=page.jobs[-1].job.job_id, limit=limit)


def _link(path: str, **query: str | int) -> str:
    return f"{path}?{urlencode(query)}"


def _check_after(after: str) -> None:
    try:
        validate_customer_id(after)
    except InvalidCustomerId as error:
        raise InvalidRequest("after", after, f"a customer id: {error.expected}") from error
