"""When a delivery is tried again, and when it is at its end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.settings import WebhookSettings

PAUSES = WebhookSettings().pauses_after_failure()
"""Pauses after failed calls, unless the settings say otherwise."""
LONGEST_REQUEST = timedelta(days=1)
"""How far off a receiver may wish the next call."""

_GONE = 410
_ASKS_FOR_PATIENCE = (429, 503)


def jittered() -> float:
    """By how much one pause is longer or shorter than planned, so that what failed together comes apart."""
    return random.uniform(0.8, 1.2)


def after(
    delivery: WebhookDelivery,
    attempt: DeliveryAttempt,
    patience: timedelta | None = None,
    jitter: Callable[[], float] = jittered,
    pauses: Sequence[timedelta] = PAUSES,
) -> WebhookDelivery:
    """The delivery as this call leaves it.

    2xx is delivery; 410 ends it; everything else, redirects included, is tried again while the schedule has
    a pause left. `patience` is what the receiver asked for: it can only lengthen the schedule's own pause,
    so that no answer makes us call more often.
    """
    tries = delivery.tries + 1
    if attempt.status is not None and 200 <= attempt.status < 300:
        return replace(delivery, state=DeliveryState.DELIVERED, tries=tries, next_at=None)
    if attempt.status == _GONE or tries > len(pauses):
        return replace(delivery, state=DeliveryState.GIVEN_UP, tries=tries, next_at=None)
    pause = max(pauses[tries - 1] * jitter(), patience or timedelta())
    return replace(delivery, tries=tries, next_at=attempt.at + timedelta(seconds=attempt.seconds) + pause)


def patience_asked(status: int, retry_after: str | None, now: datetime) -> timedelta | None:
    """How long the receiver wants to be left alone: its `Retry-After`, where the status gives it a meaning.

    It is a number of seconds or a date (RFC 9110, section 10.2.3); whatever else it is counts as absent.
    """
    if status not in _ASKS_FOR_PATIENCE or retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # More digits than a day has seconds; the number itself may be too big for a `timedelta`.
        return LONGEST_REQUEST if len(text) > 5 else min(timedelta(seconds=int(text)), LONGEST_REQUEST)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max(date - now, timedelta()), LONGEST_REQUEST)
