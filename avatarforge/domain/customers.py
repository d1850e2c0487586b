"""Customers, and the grammar of their ids."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from avatarforge.domain.errors import InvalidCustomerId
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.pickling import pickle_by_name

GRAMMAR = r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}"
"""One to 64 of the characters that need no escape in a path (RFC 3986, unreserved)."""

_PATTERN = re.compile(GRAMMAR)


def validate_customer_id(text: str) -> str:
    """Return the id itself. Ids are compared byte by byte everywhere: `Ana` and `ana` are two customers.

    Raises `InvalidCustomerId`.
    """
    if _PATTERN.fullmatch(text) is None:
        raise InvalidCustomerId(
            "customerId",
            text,
            "1 to 64 characters of A-Z, a-z, 0-9, '.', '_', '~' and '-', starting with a letter or digit",
        )
    return text


def shard_of(customer_id: str, shards: int) -> int:
    """Return which of `shards` trackers keeps this customer: the same in every process and release."""
    digest = hashlib.blake2b(customer_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class CustomerSummary:
    """A customer as a list shows them."""

    customer_id: str
    created_at: datetime
    """When the first photo came."""
    jobs: int
    """How many jobs the customer has now; erased ones do not count."""
    latest: ProfilePhotoJob | None
    """The newest of them."""
