"""Signatures of webhooks, by https://github.com/standard-webhooks/standard-webhooks (1.0.0)."""

import base64
import hmac
import secrets
from collections.abc import Sequence

from avatarforge.settings import SettingsError

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64
"""Of a secret."""


class Signer:
    """Signs with every secret, so that receivers can go over from one to the next in their own time.

    A receiver's own secret is derived from one of ours and an id (`derive_secret`): it is nowhere on record,
    and no receiver knows another's. Ours sign too, so that a receiver goes over to its own when it likes.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises `SettingsError` for a secret that is none; the text does not show it."""
        self._keys = [_read_key(text, f"{number} of {len(texts)}") for number, text in enumerate(texts, 1)]

    @property
    def can_sign(self) -> bool:
        """There is a secret at all."""
        return bool(self._keys)

    def headers(
        self, delivery_id: str, timestamp: int, body: bytes, secret_ids: Sequence[str] = ()
    ) -> list[tuple[str, str]]:
        """Return the headers that sign a call at `timestamp`, in seconds since 1970. `secret_ids`: of the
        receiver's own secrets."""
        own = [_derive_key(key, secret_id) for secret_id in secret_ids for key in self._keys]
        signatures = [sign(key, delivery_id, timestamp, body) for key in (*self._keys, *own)]
        return [
            ("webhook-id", delivery_id),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", " ".join(signatures)),
        ]


def new_secret() -> str:
    """Make a fresh secret, of 32 random bytes."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def derive_secret(secret: str, secret_id: str) -> str:
    """Return a receiver's own secret. Raises `ValueError` if ours is none."""
    return _PREFIX + base64.b64encode(_derive_key(decode_secret(secret), secret_id)).decode()


def _derive_key(key: bytes, secret_id: str) -> bytes:
    # Nothing that is signed has this form: a signed text begins with a delivery's id and a point.
    return hmac.digest(key, f"avatarforge webhook secret {secret_id}".encode(), "sha256")


def sign(key: bytes, delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature (version 1) of one call. `timestamp`: seconds since 1970."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def decode_secret(secret: str) -> bytes:
    """Return the bytes that a secret (`whsec_…`) stands for.

    Raises `ValueError` for a text that is none; its own text says why and does not show the secret.
    """
    if not secret.startswith(_PREFIX):
        raise ValueError(f"The secret does not begin with {_PREFIX!r}.")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:  # binascii.Error, or other letters than ASCII
        raise ValueError(f"The secret is not base64 after {_PREFIX!r}.") from None
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        expected = f"{_MIN_BYTES} to {_MAX_BYTES} (base64 after {_PREFIX!r})"
        raise ValueError(f"The secret has {len(key)} bytes, but it must have {expected}.")
    return key


def _read_key(text: str, which: str) -> bytes:
    try:
        return decode_secret(text)
    except ValueError as error:
        place = f"The setting webhook.secrets (AVATARFORGE_WEBHOOK_SECRETS): secret {which}"
        raise SettingsError(f"{place}: {error}") from None
