"""When a delivery is tried again, and when it is at its end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.settings import WebhookSettings

DEFAULT_RETRY_DELAYS = WebhookSettings().retry_delays
"""Delays after failed calls, unless the settings say otherwise."""
MAX_RETRY_AFTER = timedelta(days=1)
"""How far off a receiver may put the next call."""

_GONE = 410
_HAVE_RETRY_AFTER = (429, 503)


def random_jitter() -> float:
    """Return a factor for one delay, so that calls that failed together come apart."""
    return random.uniform(0.8, 1.2)


def apply_attempt(
    delivery: WebhookDelivery,
    attempt: DeliveryAttempt,
    retry_after: timedelta | None = None,
    jitter: Callable[[], float] = random_jitter,
    delays: Sequence[timedelta] = DEFAULT_RETRY_DELAYS,
) -> WebhookDelivery:
    """Return the delivery that this call leaves.

    2xx is delivery; 410 ends it; everything else, redirects included, is tried again while the schedule has
    a delay left. `retry_after` is what the receiver asked for: it can only lengthen the schedule's own
    delay, so that no answer makes us call more often.
    """
    tries = delivery.tries + 1
    if attempt.status is not None and 200 <= attempt.status < 300:
        return replace(delivery, state=DeliveryState.DELIVERED, tries=tries, next_at=None)
    if attempt.status == _GONE or tries > len(delays):
        return replace(delivery, state=DeliveryState.GIVEN_UP, tries=tries, next_at=None)
    delay = max(delays[tries - 1] * jitter(), retry_after or timedelta())
    return replace(delivery, tries=tries, next_at=attempt.at + timedelta(seconds=attempt.seconds) + delay)


def parse_retry_after(status: int, retry_after: str | None, now: datetime) -> timedelta | None:
    """Return how long the receiver wants to be left alone, where the status gives `Retry-After` a meaning.

    It is a number of seconds or a date (RFC 9110, section 10.2.3); whatever else it is counts as absent.
    """
    if status not in _HAVE_RETRY_AFTER or retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # More digits than a day has seconds; the number itself may be too big for a `timedelta`.
        return MAX_RETRY_AFTER if len(text) > 5 else min(timedelta(seconds=int(text)), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max(date - now, timedelta()), MAX_RETRY_AFTER)
