"""Redaction of secrets in logs: whatever else goes wrong, none of the settings' is written."""

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

MASK = "***"
MIN_LENGTH = 6
"""Characters of a secret that is looked for: a shorter one would also be found in innocent words."""


def secrets_of(settings: BaseModel) -> tuple[str, ...]:
    """Return every secret of the settings; of addresses the passwords, of lists each one. Longest
    first, so that none is left in part."""
    found = {part for text in _texts(settings) for part in _parts(text) if len(part) >= MIN_LENGTH}
    return tuple(sorted(found, key=len, reverse=True))


def redact(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        # One search a secret; replacing copies the text.
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def _texts(settings: BaseModel) -> Iterable[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _texts(value)
        elif isinstance(value, SecretStr):
            yield value.get_secret_value()


def _parts(text: str) -> Iterable[str]:
    if "://" in text:
        # The rest of an address is no secret, and is needed to understand an error.
        if (password := urlsplit(text).password) is not None:
            yield from {password, unquote(password)}
        return
    for part in text.split(","):
        yield part.strip()
        # `Authorization=Bearer abc`: the last word is the secret.
        yield part.split()[-1] if part.split() else ""
