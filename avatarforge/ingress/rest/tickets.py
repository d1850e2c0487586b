"""The calls about access: a key's own scope, and tickets and links for browsers, which cannot send a key."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from avatarforge.access.authorizer import Authorizer
from avatarforge.domain import errors
from avatarforge.domain.access import EVERY_CUSTOMER
from avatarforge.ingress.middleware.authentication import get_api_key
from avatarforge.ingress.rest.openapi import error_responses
from avatarforge.ingress.rest.photos import CustomerId, JobId
from avatarforge.ingress.rest.responses import get_service, json_response
from avatarforge.rest_messages import ImageLink, ImageLinks, KeyMessage, TicketMessage

router = APIRouter()


@router.post(
    "/customers/{customerId}/tickets",
    status_code=201,
    response_model=TicketMessage,
    response_description="The ticket: it opens one stream.",
    tags=["access"],
)
async def create_ticket(request: Request, customer_id: CustomerId) -> Response:
    """Make a ticket for an EventSource, which cannot send a key: `…/photos/stream?ticket=…` takes it once,
    within seconds. Coming back needs a new one."""
    ticket = await _get_authorizer(request).issue_ticket(customer_id, get_api_key(request))
    return json_response(TicketMessage(ticket=ticket.text, expires_at=ticket.expires_at), 201)


@router.get("/keys/self", response_model=KeyMessage, tags=["access"])
async def get_own_key(request: Request) -> Response:
    """Tell what the key of this call may do. Where no keys are asked for, everybody may do everything."""
    key = get_api_key(request)
    if key is None:
        return json_response(KeyMessage(customers=(EVERY_CUSTOMER,), is_admin=True))
    return json_response(
        KeyMessage(
            key_id=key.key_id,
            name=key.name,
            customers=key.customers,
            is_admin=key.is_admin,
            expires_at=key.expires_at,
        )
    )


@router.get(
    "/customers/{customerId}/photos/{jobId}/links",
    response_model=ImageLinks,
    responses=error_responses(errors.JobNotFound, errors.InvalidRequest, errors.LinksUnavailable),
    tags=["images"],
)
async def get_links(
    request: Request,
    customer_id: CustomerId,
    job_id: JobId,
    expires_seconds: Annotated[
        int | None,
        Query(
            alias="expiresSeconds",
            ge=1,
            description="How long the URLs work: up to `maxLinkSeconds` of `GET /about`; by default five "
            "minutes, or what the server is set to, and no longer for the original.",
        ),
    ] = None,
) -> Response:
    """Sign URLs of the job's images: for a while they need no key, so that an `<img>` can show them, or
    somebody else can see them."""
    authorizer = _get_authorizer(request)
    end = authorizer.link_expiry(expires_seconds)
    # A link outlives its key, and the photo is more private than the avatar.
    original_end = min(end, authorizer.link_expiry())
    status = (await get_service(request).status(customer_id, job_id)).to_message()
    return json_response(
        ImageLinks(
            original_url=None
            if status.original_url is None
            else authorizer.sign_link(status.original_url, original_end),
            generated_url=None
            if status.generated_url is None
            else authorizer.sign_link(status.generated_url, end),
            images=tuple(
                ImageLink(index=image.index, generated_url=authorizer.sign_link(image.generated_url, end))
                for image in status.images
            ),
            expires_at=end,
            original_expires_at=original_end,
        )
    )


def _get_authorizer(request: Request) -> Authorizer:
    authorizer: Authorizer = request.app.state.authorizer
    return authorizer
