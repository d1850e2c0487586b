"""The calls that change a job after its upload: cancel, retry, keep an image, erase, and webhooks again."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Request
from pydantic import ValidationError
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.domain import errors
from avatarforge.domain.errors import InvalidRequest
from avatarforge.ingress.rest import responses
from avatarforge.ingress.rest.openapi import ACCEPTED, error_responses
from avatarforge.ingress.rest.photos import KEY_SCHEMA, CustomerId, JobId, respond_accepted
from avatarforge.ingress.rest.responses import get_service, json_response
from avatarforge.ingress.upload.multipart import drain, until_silence
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.telemetry import traces

router = APIRouter()

MAX_BODY_BYTES = 1024
"""Of a command's JSON."""
_KEPT = rest_messages.KeptImage.model_json_schema()
_KEPT_EXAMPLE = 'the number of an image, from 0 up: {"index": 0}'

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Your name for this request. Sent again within a day it does nothing more: the answer is "
        "the first one's.",
        json_schema_extra=KEY_SCHEMA,
    ),
]
_KEY_ERRORS = (errors.InvalidRequest, errors.IdempotencyKeyReused, errors.IdempotencyKeyInFlight)


@router.post(
    "/customers/{customerId}/photos/{jobId}/cancel",
    response_model=ProfilePhotoJobStatus,
    responses=error_responses(errors.JobNotFound, errors.IllegalTransition, errors.TrackerUnavailable),
    tags=["photos"],
)
async def cancel_photo(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """End a job that waits or runs; a running one stops at its next step.

    Cancelling it again changes nothing.
    """
    return json_response((await get_service(request).cancel(customer_id, job_id)).to_message())


@router.post(
    "/customers/{customerId}/photos/{jobId}/retry",
    status_code=202,
    response_model=ProfilePhotoJobStatus,
    response_description="Accepted: a new job, which names the old one in `retryOf`.",
    responses=ACCEPTED
    | error_responses(
        errors.JobNotFound,
        errors.ImageNotFound,
        errors.JobNotFinished,
        *_KEY_ERRORS,
        errors.BacklogFull,
        errors.CustomerBacklogFull,
        errors.StorageUnavailable,
        errors.StorageFull,
        errors.TrackerUnavailable,
    ),
    tags=["photos"],
)
async def retry_photo(
    request: Request, customer_id: CustomerId, job_id: JobId, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a new job with the photo and the parameters of one that has ended. `Location` names its status."""
    with traces.upload(request.headers.get("traceparent")):
        return respond_accepted(await get_service(request).retry(customer_id, job_id, idempotency_key))


@router.put(
    "/customers/{customerId}/photos/{jobId}/kept",
    response_model=ProfilePhotoJobStatus,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _KEPT}}}},
    responses=error_responses(
        errors.JobNotFound, errors.MalformedUpload, errors.InvalidRequest, errors.TrackerUnavailable
    ),
    tags=["photos"],
)
async def keep_image(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """Choose which of the job's images the client keeps: `…/generated` is that one from then on.

    It may be any that is among `images`, also while the job runs, and another one later.
    """
    # Read by hand: FastAPI would take a body of any size into memory.
    index = await _read_index(request)
    return json_response((await get_service(request).keep_image(customer_id, job_id, index)).to_message())


async def _read_index(request: Request) -> int:
    body, stream = bytearray(), request.stream()
    async with until_silence() as heard:
        async for chunk in stream:
            heard()
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                await drain(stream, None)
                raise InvalidRequest("body", f"more than {MAX_BODY_BYTES} bytes", _KEPT_EXAMPLE)
    try:
        return rest_messages.KeptImage.model_validate_json(body.decode(errors="replace"), strict=True).index
    except ValidationError as error:
        fault = error.errors()[0]
        name = "index" if fault["loc"] else "body"
        value = None if fault["type"] == "missing" else fault["input"]
        raise InvalidRequest(name, value, _KEPT_EXAMPLE) from error


@router.delete(
    "/customers/{customerId}/photos/{jobId}",
    status_code=204,
    response_description="Erased.",
    responses=error_responses(errors.JobNotFound, errors.TrackerUnavailable),
    tags=["photos"],
)
async def erase_photo(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """Remove the job with its original, its avatar and its webhooks. A job that runs publishes nothing."""
    await get_service(request).erase(customer_id, job_id)
    return Response(status_code=204)


@router.delete(
    "/customers/{customerId}",
    status_code=204,
    response_description="Erased.",
    responses=error_responses(errors.CustomerNotFound, errors.TrackerUnavailable),
    tags=["customers"],
)
async def erase_customer(request: Request, customer_id: CustomerId) -> Response:
    """Remove the customer with every job and every image."""
    await get_service(request).erase_customer(customer_id)
    return Response(status_code=204)


@router.get(
    "/customers/{customerId}/photos/{jobId}/deliveries",
    response_model=rest_messages.DeliveryList,
    responses=error_responses(errors.JobNotFound),
    tags=["webhooks"],
)
async def list_deliveries(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """List the job's webhooks, each with its calls and their answers."""
    reports = await get_service(request).deliveries(customer_id, job_id)
    return json_response(
        rest_messages.DeliveryList(deliveries=tuple(map(responses.delivery_message, reports)))
    )


@router.post(
    "/customers/{customerId}/photos/{jobId}/deliveries/{deliveryId}/redeliver",
    status_code=202,
    response_model=rest_messages.DeliveryMessage,
    response_description="It will be sent at once, under the same id.",
    responses=error_responses(
        errors.JobNotFound, errors.DeliveryNotFound, *_KEY_ERRORS, errors.TrackerUnavailable
    ),
    tags=["webhooks"],
)
async def redeliver_webhook(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    delivery_id: Annotated[str, Path(alias="deliveryId", description="As the list of deliveries tells it.")],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a webhook again, whether it has arrived or was given up."""
    report = await get_service(request).redeliver(customer_id, job_id, delivery_id, idempotency_key)
    return json_response(responses.delivery_message(report), 202)
