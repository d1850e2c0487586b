"""Verification of webhooks, for those who receive them.

The scheme is https://github.com/standard-webhooks/standard-webhooks (1.0.0).
"""

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from avatarforge.client.errors import InvalidWebhook
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.webhooks.signing import decode_secret, sign

TOLERANCE_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A verified webhook: a job has ended."""

    webhook_id: str
    """The same in every call about this event: keep it to recognize a repetition."""
    sent_at: datetime
    job: ProfilePhotoJobStatus


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secrets: str | Sequence[str],
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> Webhook:
    """Verify that a webhook is signed with one of the secrets, and parse it.

    Raises `InvalidWebhook`, to be answered with 401 or the like, and `ValueError` if a secret is not valid.

    Args:
        headers: The request's headers.
        body: The request's body, byte by byte as it came.
        secrets: One or several, while they are rotated.
        tolerance: Seconds that the call's time and `now` may lie apart.
        now: Seconds since 1970, by default the clock's.
    """
    keys = [decode_secret(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("There is no secret to verify webhooks with.")
    lowered = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = _get_header(lowered, "webhook-id"), _parse_timestamp(lowered)
    if abs((time.time() if now is None else now) - timestamp) > tolerance:
        raise InvalidWebhook(f"its time is more than {tolerance:g} s away from ours")
    if not _is_signed(_get_header(lowered, "webhook-signature"), keys, webhook_id, timestamp, body):
        raise InvalidWebhook("no signature was made with a secret that is known here")
    try:
        job = ProfilePhotoJobStatus.model_validate_json(body)
    except ValidationError as error:
        raise InvalidWebhook("its body is no ProfilePhotoJobStatus") from error
    return Webhook(webhook_id=webhook_id, sent_at=datetime.fromtimestamp(timestamp, UTC), job=job)


def _is_signed(header: str, keys: list[bytes], webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Compare each signature of the header with each key's: there are several while secrets are rotated."""
    # Other versions than 1 are not ours.
    given = [text.encode() for text in header.split(" ") if text.startswith("v1,")]
    expected = [sign(key, webhook_id, timestamp, body).encode() for key in keys]
    return any(hmac.compare_digest(one, other) for one in given for other in expected)


def _get_header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise InvalidWebhook(f"it has no header {name}")
    return value


def _parse_timestamp(headers: Mapping[str, str]) -> int:
    text = _get_header(headers, "webhook-timestamp")
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidWebhook("its webhook-timestamp is no number of seconds")
    return int(text)
