"""For those who receive webhooks: whether a call is ours.

As https://github.com/standard-webhooks/standard-webhooks (1.0.0) has it.
"""

import hmac
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from avatarforge.client.errors import InvalidWebhook
from avatarforge.client.results import Webhook
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.webhooks.signing import key_of, signature

TOLERANCE_SECONDS = 300.0


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secrets: str | Sequence[str],
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> Webhook:
    """The webhook, once its signature has been found to be made with one of the secrets.

    `headers` and `body` are the request's, the body as its bytes came. `tolerance`: seconds that the call's
    time and `now` (seconds since 1970; by default the clock's) may lie apart.
    Raises `InvalidWebhook`, to be answered with 401 or the like, and `ValueError` for a secret that is none.
    """
    keys = [key_of(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("There is no secret to verify webhooks with.")
    given = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = _required(given, "webhook-id"), _timestamp(given)
    if abs((time.time() if now is None else now) - timestamp) > tolerance:
        raise InvalidWebhook(f"its time is more than {tolerance:g} s away from ours")
    if not _is_signed(_required(given, "webhook-signature"), keys, webhook_id, timestamp, body):
        raise InvalidWebhook("no signature was made with a secret that is known here")
    try:
        job = ProfilePhotoJobStatus.model_validate_json(body)
    except ValidationError as error:
        raise InvalidWebhook("its body is no ProfilePhotoJobStatus") from error
    return Webhook(webhook_id=webhook_id, sent_at=datetime.fromtimestamp(timestamp, UTC), job=job)


def _is_signed(header: str, keys: list[bytes], webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Several signatures stand side by side while secrets are rotated; other versions than 1 are not ours."""
    given = [text.encode() for text in header.split(" ") if text.startswith("v1,")]
    expected = [signature(key, webhook_id, timestamp, body).encode() for key in keys]
    return any(hmac.compare_digest(one, other) for one in given for other in expected)


def _required(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise InvalidWebhook(f"it has no header {name}")
    return value


def _timestamp(headers: Mapping[str, str]) -> int:
    text = _required(headers, "webhook-timestamp")
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidWebhook("its webhook-timestamp is no number of seconds")
    return int(text)
