"""Webhook deliveries: a job's end on its way to its receiver, and the calls made for it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from avatarforge.domain.changes import JobChange
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.status import TERMINAL_EVENTS


class DeliveryState(StrEnum):
    """A delivery is on its way, has arrived, or was given up."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookSecret:
    """A receiver's own secret, as it is on record. The secret itself follows from the id: see `Signer`."""

    secret_id: str
    customers: str
    """Whose webhooks it signs: a customer's id; `shop-*` stands for all that begin so."""
    created_at: datetime
    expires_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at


@pickle_by_name
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

    @classmethod
    def for_change(cls, change: JobChange) -> Self | None:
        """Make the delivery that a numbered change causes: of a job that ends and has a callback URL."""
        job, event = change.job, change.event
        if job.callback_url is None or event.kind not in TERMINAL_EVENTS:
            return None
        return cls(
            delivery_id=delivery_id_of(job.job_id, event.seq),
            job_id=job.job_id,
            customer_id=job.customer_id,
            seq=event.seq,
            url=job.callback_url,
            created_at=event.at,
            next_at=event.at,
        )


@pickle_by_name
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


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryReport:
    """A delivery with its calls, oldest first."""

    delivery: WebhookDelivery
    attempts: tuple[DeliveryAttempt, ...]


def delivery_id_of(job_id: str, seq: int) -> str:
    return f"msg_{job_id}_{seq}"
