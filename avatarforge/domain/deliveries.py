"""Webhook deliveries: who is to be told of a job's end, and how the calls went."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class DeliveryState(StrEnum):
    """Whether a delivery is on its way, has arrived, or was given up."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookDelivery:
    """One terminal event on its way to one address. It is written in the event's own transaction."""

    delivery_id: str
    """Also the `webhook-id` that receivers see: the same in every call of this delivery."""
    job_id: str
    customer_id: str
    seq: int
    """The terminal event's number in the log."""
    url: str
    created_at: datetime
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0
    """Calls made since it was written or last asked for again."""
    next_at: datetime | None = None
    """When it is called next; `None` unless PENDING."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryAttempt:
    """One call of a receiver."""

    at: datetime
    seconds: float
    """How long the call took."""
    status: int | None
    """The HTTP status; `None` where no answer came."""
    answer: str
    """The beginning of the answer's body, or what went wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryReport:
    """A delivery with its calls, oldest first."""

    delivery: WebhookDelivery
    attempts: tuple[DeliveryAttempt, ...]


def delivery_id_of(job_id: str, seq: int) -> str:
    """The id of the delivery of this event."""
    return f"msg_{job_id}_{seq}"
