"""Callback URLs: their grammar, and the parts that a call needs."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Self
from urllib.parse import urlsplit

_EXPECTED = "an absolute URL with http or https and a host"
_PORTS = {"http": 80, "https": 443}
_NETLOC = re.compile(r"(\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(:(?P<port>[0-9]{0,5}))?")
_MAX_NAME, _MAX_LABEL = 253, 63
"""Characters of a host's name and of one of its labels (RFC 1035, section 2.3.4)."""


class UnusableUrl(ValueError):
    """The text is no callback URL. The argument says what would be right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackUrl:
    """An absolute HTTP URL in its parts."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets; it may be an IPv4 address in one of its odd spellings."""
    port: int
    target: str
    """Path and query, as they stand in the request's first line."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split the text; a fragment is left away, since it is never sent. Raises `UnusableUrl`."""
        if not text.isascii() or not text.isprintable() or " " in text:
            raise UnusableUrl(_EXPECTED)
        try:
            parts = urlsplit(text)
        except ValueError:
            # The brackets of an IPv6 host do not match.
            raise UnusableUrl(_EXPECTED) from None
        if "@" in parts.netloc:
            raise UnusableUrl("a URL without a user name and password")
        netloc = _NETLOC.fullmatch(parts.netloc)
        if parts.scheme not in _PORTS or netloc is None:
            raise UnusableUrl(_EXPECTED)
        return cls(
            scheme=parts.scheme,
            host=_parse_host(netloc),
            port=_parse_port(netloc["port"]) or _PORTS[parts.scheme],
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        )

    @property
    def authority(self) -> str:
        """Host and port as the `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: deliveries of one origin go to one receiver."""
        return f"{self.scheme}://{self.authority}"


def _parse_host(netloc: re.Match[str]) -> str:
    if netloc["ipv6"] is not None:
        try:
            return str(IPv6Address(netloc["ipv6"]))
        except ValueError:
            raise UnusableUrl(_EXPECTED) from None
    name = netloc["name"].lower()
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_NAME or not all(0 < len(label) <= _MAX_LABEL for label in labels):
        raise UnusableUrl(_EXPECTED)
    return name


def _parse_port(digits: str | None) -> int | None:
    if not digits:
        return None
    if not 1 <= int(digits) <= 65535:
        raise UnusableUrl("a URL with a port from 1 to 65535")
    return int(digits)
