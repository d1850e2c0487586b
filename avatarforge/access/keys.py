"""API keys as text: `afk_<id>_<secret>`."""

import hashlib
import hmac
import re
import secrets

_FORM = re.compile(r"afk_(?P<key_id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
LONGEST = 128
"""Characters of a text that is looked at at all."""


def new_key() -> tuple[str, str]:
    """A fresh key's id, and the key: told once and kept nowhere."""
    key_id = secrets.token_hex(6)
    return key_id, f"afk_{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(text: str) -> str | None:
    """The id in a key; `None` for what is none."""
    found = _FORM.fullmatch(text) if len(text) <= LONGEST else None
    return None if found is None else found["key_id"]


def hash_of(text: str) -> str:
    """What is kept of a key or a ticket, in hex.

    One round of SHA-256: slow hashes protect passwords that can be guessed. The secret is 256 random bits,
    and every request pays for the hash.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, secret_hash: str) -> bool:
    """Whether it is the key of that hash; takes the same time whatever the answer."""
    return hmac.compare_digest(hash_of(text), secret_hash)
