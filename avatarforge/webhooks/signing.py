"""Signatures of webhooks, as https://github.com/standard-webhooks/standard-webhooks (1.0.0) has them."""

import base64
import hmac
import secrets
from collections.abc import Sequence

from avatarforge.settings import SettingsError

_PREFIX = "whsec_"
_LEAST, _MOST = 24, 64
"""Bytes of a secret."""


class Signer:
    """Signs with every secret, so that receivers can go over from one to the next in their own time."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises `SettingsError` for a secret that is none; the text does not show it."""
        self._keys = [_key(text, f"{number} of {len(texts)}") for number, text in enumerate(texts, 1)]

    @property
    def can_sign(self) -> bool:
        """Whether there is a secret at all."""
        return bool(self._keys)

    def headers(self, delivery_id: str, timestamp: int, body: bytes) -> list[tuple[str, str]]:
        """The headers that sign a call. `timestamp`: of this call, in seconds since 1970."""
        signatures = [signature(key, delivery_id, timestamp, body) for key in self._keys]
        return [
            ("webhook-id", delivery_id),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", " ".join(signatures)),
        ]


def new_secret() -> str:
    """A fresh secret, of 32 random bytes."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signature(key: bytes, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The signature (version 1) of one call. `timestamp`: seconds since 1970."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def key_of(secret: str) -> bytes:
    """The bytes that a secret (`whsec_…`) stands for.

    Raises `ValueError` for a text that is none; its own text says why and does not show the secret.
    """
    if not secret.startswith(_PREFIX):
        raise ValueError(f"The secret does not begin with {_PREFIX!r}.")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:  # binascii.Error, or other letters than ASCII
        raise ValueError(f"The secret is not base64 after {_PREFIX!r}.") from None
    if not _LEAST <= len(key) <= _MOST:
        expected = f"{_LEAST} to {_MOST} (base64 after {_PREFIX!r})"
        raise ValueError(f"The secret has {len(key)} bytes, but it must have {expected}.")
    return key


def _key(text: str, which: str) -> bytes:
    try:
        return key_of(text)
    except ValueError as error:
        place = f"The setting webhook.secrets (AVATARFORGE_WEBHOOK_SECRETS): secret {which}"
        raise SettingsError(f"{place}: {error}") from None
