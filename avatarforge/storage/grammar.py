"""The grammar of object keys: what S3, every file system and a URL's path take as it stands."""

import re

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")

LONGEST = 1024
"""Characters of the longest key that S3 takes."""


def checked_key(key: str) -> str:
    """The key itself. Raises `ValueError` for an absolute one, an empty segment, `.`, `..` and the like."""
    if len(key) > LONGEST or _KEY.fullmatch(key) is None:
        raise ValueError(f"{key[:200]!r} is not an object key: segments of A-Za-z0-9._~- joined by '/'")
    return key


def checked_prefix(prefix: str) -> str:
    """The beginning of a key, or nothing, itself. Raises `ValueError`."""
    if len(prefix) > LONGEST or _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f"{prefix[:200]!r} is not the beginning of an object key")
    return prefix
