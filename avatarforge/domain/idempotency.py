"""Idempotency keys: a client's name for one upload, so that repeating it makes no second job."""

from dataclasses import dataclass
from datetime import timedelta

LIFETIME = timedelta(days=1)
"""How long a key is remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyKey:
    """A key and what was sent under it."""

    key: str
    fingerprint: str
    """A digest of the upload: of its photo and its fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownKey:
    """A key that is on record."""

    fingerprint: str
    job_id: str
