"""Links that work without a key for a while: a path, the time of its end, and our signature on both."""

import base64
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from avatarforge.domain.errors import LinkInvalid, LinksUnavailable

EXPIRES, SIGNATURE = "expires", "signature"
"""The parameters of a link."""
_MAX_DIGITS = 12


class LinkSigner:
    """Signs with the first secret, and accepts every one's signature."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [secret.encode() for secret in secrets]

    def sign(self, path: str, expires: int) -> str:
        """Return the path with its signature; it works until `expires`, in seconds since 1970.

        Raises `LinksUnavailable` without a secret.
        """
        if not self._keys:
            raise LinksUnavailable
        return f"{path}?{urlencode({EXPIRES: expires, SIGNATURE: _signature(self._keys[0], path, expires)})}"

    def check(self, path: str, query: Mapping[str, str], now: float) -> None:
        """Raises `LinkInvalid` unless the query holds our signature of the path and its time is not over."""
        expires, given = query.get(EXPIRES, ""), query.get(SIGNATURE, "")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= _MAX_DIGITS):
            raise LinkInvalid
        matching = [
            hmac.compare_digest(_signature(key, path, int(expires)).encode(), given.encode())
            for key in self._keys
        ]
        if not any(matching) or int(expires) <= now:
            raise LinkInvalid


def _signature(key: bytes, path: str, expires: int) -> str:
    # The path has no line break: what is signed can be read in one way only.
    digest = hmac.digest(key, f"avatarforge-link\n{path}\n{expires}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
