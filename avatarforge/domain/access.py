"""API keys, and the customers that they give access to."""

import re
from dataclasses import dataclass
from datetime import datetime

from avatarforge.domain.customers import GRAMMAR
from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.pickling import pickle_by_name

EVERY_CUSTOMER = "*"
"""The pattern that matches every customer."""

_PATTERN = re.compile(rf"(?:{GRAMMAR})?\*|{GRAMMAR}")
MAX_NAME_LENGTH = 128


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is on record. The secret itself is nowhere."""

    key_id: str
    name: str
    secret_hash: str
    """SHA-256 of the whole key, in hex."""
    customers: tuple[str, ...]
    """Ids of customers; `shop-*` stands for all that begin so, `*` for every one."""
    is_admin: bool
    """It may ask about the service as a whole."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute or so."""

    def can_access(self, customer_id: str) -> bool:
        """Tell whether the customer is within the key's scope, if there is one of that id or not."""
        return any(matches_pattern(customer_id, pattern) for pattern in self.customers)

    @property
    def can_access_everybody(self) -> bool:
        return EVERY_CUSTOMER in self.customers

    def is_valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def matches_pattern(customer_id: str, pattern: str) -> bool:
    """Tell whether the pattern, of a key or of a webhook's secret, stands for the customer."""
    if pattern.endswith(EVERY_CUSTOMER):
        return customer_id.startswith(pattern[:-1])
    return customer_id == pattern


def validate_pattern(text: str) -> str:
    """Return a pattern of customers as it is. Raises `InvalidRequest`."""
    # The star is no character of an id, so that none can be mistaken for a pattern.
    if _PATTERN.fullmatch(text) is None:
        raise InvalidRequest(
            "The customer", text, "a customer id, the beginning of one with a star behind it, or a star alone"
        )
    return text


def validate_name(text: str) -> str:
    """Return a key's name as it is. Raises `InvalidRequest`."""
    if not (text.strip() and len(text) <= MAX_NAME_LENGTH and text.isprintable()):
        raise InvalidRequest("The key's name", text, f"1 to {MAX_NAME_LENGTH} printable characters")
    return text
