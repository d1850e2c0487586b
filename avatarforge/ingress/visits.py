"""The calls that let browsers in where they cannot send a key: tickets for streams, links for images."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from avatarforge.access.gate import Gate
from avatarforge.domain import errors
from avatarforge.ingress.access import key_of
from avatarforge.ingress.answers import json_answer, service_of
from avatarforge.ingress.documentation import told
from avatarforge.ingress.routes import CustomerId, JobId
from avatarforge.ingress.schemas import status_message
from avatarforge.rest_messages import ImageLinks, TicketMessage

router = APIRouter()


@router.post(
    "/customers/{customerId}/tickets",
    status_code=201,
    response_model=TicketMessage,
    response_description="The ticket: it opens one stream.",
    responses=told(errors.InvalidCustomerId, errors.DatabaseUnavailable),
    tags=["access"],
)
async def make_ticket(request: Request, customer_id: CustomerId) -> Response:
    """A ticket for an EventSource, which cannot send a key: `…/photos/stream?ticket=…` takes it once, within
    seconds. Coming back needs a new one."""
    ticket = await _gate_of(request).ticket(customer_id, key_of(request))
    return json_answer(TicketMessage(ticket=ticket.text, expires_at=ticket.expires_at), 201)


@router.get(
    "/customers/{customerId}/photos/{jobId}/links",
    response_model=ImageLinks,
    responses=told(
        errors.InvalidCustomerId, errors.JobNotFound, errors.DatabaseUnavailable, errors.LinksUnavailable
    ),
    tags=["images"],
)
async def image_links(request: Request, customer_id: CustomerId, job_id: JobId) -> Response:
    """The job's images under signed URLs: for some minutes they need no key, so that an `<img>` can show
    them."""
    gate = _gate_of(request)
    end = gate.links_end()
    status = status_message(await service_of(request).status(customer_id, job_id))
    return json_answer(
        ImageLinks(
            original_url=None if status.original_url is None else gate.link(status.original_url, end),
            generated_url=None if status.generated_url is None else gate.link(status.generated_url, end),
            expires_at=end,
        )
    )


def _gate_of(request: Request) -> Gate:
    gate: Gate = request.app.state.gate
    return gate
