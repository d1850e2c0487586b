"""Who may do what: API keys and the customers that they reach."""

import re
from dataclasses import dataclass
from datetime import datetime

from avatarforge.domain.customers import GRAMMAR
from avatarforge.domain.errors import InvalidRequest

EVERY = "*"
"""The pattern that matches every customer."""

_PATTERN = re.compile(rf"(?:{GRAMMAR})?\*|{GRAMMAR}")
MOST_NAME = 128
"""Characters of a key's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is on record. The secret itself is nowhere."""

    key_id: str
    name: str
    secret_hash: str
    """SHA-256 of the whole key, in hex."""
    customers: tuple[str, ...]
    """Ids of customers; `shop-*` stands for all that begin so, `*` for every one."""
    administers: bool
    """Whether it may ask about the service as a whole."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute or so."""

    def reaches(self, customer_id: str) -> bool:
        """Whether the customer is within the key's scope, there being one of that id or not."""
        return any(
            customer_id.startswith(pattern[:-1]) if pattern.endswith(EVERY) else customer_id == pattern
            for pattern in self.customers
        )

    @property
    def reaches_everybody(self) -> bool:
        return EVERY in self.customers

    def is_valid(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def checked_pattern(text: str) -> str:
    """One entry of a key's customers. Raises `InvalidRequest`."""
    # The star is no character of an id, so that none can be mistaken for a pattern.
    if _PATTERN.fullmatch(text) is None:
        raise InvalidRequest(
            "The customer", text, "a customer id, the beginning of one with a star behind it, or a star alone"
        )
    return text


def checked_name(text: str) -> str:
    """A key's name. Raises `InvalidRequest`."""
    if not (text.strip() and len(text) <= MOST_NAME and text.isprintable()):
        raise InvalidRequest("The key's name", text, f"1 to {MOST_NAME} printable characters")
    return text
