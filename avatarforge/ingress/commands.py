"""The calls that change a job after its upload: cancel, retry, erase, and webhooks again."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.domain import errors
from avatarforge.ingress import schemas
from avatarforge.ingress.answers import json_answer, service_of
from avatarforge.ingress.documentation import told
from avatarforge.ingress.routes import CustomerId, JobId, accepted
from avatarforge.ingress.schemas import status_message
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.telemetry import traces

router = APIRouter()

_AWAY = (errors.DatabaseUnavailable, errors.TrackerUnavailable)


@router.post(
    "/customers/{customerId}/photos/{jobId}/cancel",
    response_model=ProfilePhotoJobStatus,
    responses=told(errors.InvalidCustomerId, errors.JobNotFound, errors.IllegalTransition, *_AWAY),
    tags=["photos"],
)
async def cancel_photo(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """End a job that waits or runs; a running one stops at its next step.

    Cancelling it again changes nothing.
    """
    return json_answer(status_message(await service_of(request).cancel(customer_id, job_id)))


@router.post(
    "/customers/{customerId}/photos/{jobId}/retry",
    status_code=202,
    response_model=ProfilePhotoJobStatus,
    response_description="Accepted: a new job, which names the old one in `retryOf`.",
    responses=told(
        errors.InvalidCustomerId,
        errors.JobNotFound,
        errors.ImageNotFound,
        errors.NotFinished,
        errors.BacklogFull,
        errors.CustomerBacklogFull,
        errors.StorageUnavailable,
        errors.StorageFull,
        *_AWAY,
    ),
    tags=["photos"],
)
async def retry_photo(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """Make a new job with the photo and the wishes of one that has ended. `Location` names its status."""
    with traces.upload(request.headers.get("traceparent")):
        return accepted(await service_of(request).retry(customer_id, job_id))


@router.delete(
    "/customers/{customerId}/photos/{jobId}",
    status_code=204,
    response_description="Erased.",
    responses=told(errors.InvalidCustomerId, errors.JobNotFound, *_AWAY),
    tags=["photos"],
)
async def erase_photo(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """Remove the job with its original, its avatar and its webhooks. A job that runs publishes nothing."""
    await service_of(request).erase(customer_id, job_id)
    return Response(status_code=204)


@router.delete(
    "/customers/{customerId}",
    status_code=204,
    response_description="Erased.",
    responses=told(errors.InvalidCustomerId, errors.CustomerNotFound, *_AWAY),
    tags=["customers"],
)
async def erase_customer(request: Request, customer_id: CustomerId) -> Response:
    """Remove the customer with every job and every image."""
    await service_of(request).erase_customer(customer_id)
    return Response(status_code=204)


@router.get(
    "/customers/{customerId}/photos/{jobId}/deliveries",
    response_model=rest_messages.DeliveryList,
    responses=told(errors.InvalidCustomerId, errors.JobNotFound, errors.DatabaseUnavailable),
    tags=["webhooks"],
)
async def list_deliveries(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """The job's webhooks, each with its calls and their answers."""
    reports = await service_of(request).deliveries(customer_id, job_id)
    return json_answer(rest_messages.DeliveryList(deliveries=tuple(map(schemas.delivery_message, reports))))


@router.post(
    "/customers/{customerId}/photos/{jobId}/deliveries/{deliveryId}/redeliver",
    status_code=202,
    response_model=rest_messages.DeliveryMessage,
    response_description="It will be sent at once, under the same id.",
    responses=told(errors.InvalidCustomerId, errors.JobNotFound, errors.DeliveryNotFound, *_AWAY),
    tags=["webhooks"],
)
async def redeliver(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    delivery_id: Annotated[str, Path(alias="deliveryId", description="As the list of deliveries tells it.")],
) -> Response:
    """Send a webhook again, whether it has arrived or was given up."""
    report = await service_of(request).redeliver(customer_id, job_id, delivery_id)
    return json_answer(schemas.delivery_message(report), 202)
