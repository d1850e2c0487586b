"""Which addresses webhooks may go to: those of the public internet, however they are spelled."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from avatarforge.domain.errors import InvalidRequest
from avatarforge.settings import WebhookSettings
from avatarforge.webhooks.resolver import IpAddress, ResolutionFailed, Resolver
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

_FIELD = "callbackUrl"
_LOOKUP_TIMEOUT_SECONDS = 2.0
"""How long an upload waits for a name server."""
_RESOLVER = Resolver()

# https://www.iana.org/assignments/iana-ipv4-special-registry, and what providers of clouds added to it. The
# tables are our own: what `ipaddress` calls global has changed between patch releases of Python.
_SPECIAL_V4 = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind carriers' NAT; Alibaba's metadata are in it
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform, in the middle of public addresses
        "169.254.0.0/16",  # link-local; the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, withdrawn
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]

_UNICAST_V6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is given out. Loopback, private, link-local and multicast lie outside."""
# https://www.iana.org/assignments/iana-ipv6-special-registry
_SPECIAL_V6 = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
]

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")


def is_public(address: IpAddress) -> bool:
    """Return whether the address is one of the public internet.

    IPv6 addresses that carry IPv4 ones (mapped, NAT64, 6to4, Teredo) are as public as what they carry.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if embedded := list(_extract_v4(address)):
        return all(map(is_public, embedded))
    return address in _UNICAST_V6 and not any(address in network for network in _SPECIAL_V6)


def find_private(addresses: Iterable[IpAddress]) -> IpAddress | None:
    """Return the first address that is not public."""
    return next((address for address in addresses if not is_public(address)), None)


async def check_callback_url(url: str, settings: WebhookSettings, resolver: Resolver = _RESOLVER) -> None:
    """Refuse a URL that no webhook may go to, with `InvalidRequest`.

    Every address of its host has to be public. A name without an address at present passes: what counts is
    the address when it is called, and that is checked again.
    """
    if not settings.signing_secrets:
        raise InvalidRequest(
            _FIELD, url, "absent: webhooks are not set up here (AVATARFORGE_WEBHOOK_SECRETS holds no secret)"
        )
    try:
        host = CallbackUrl.parse(url).host
    except UnusableUrl as error:
        raise InvalidRequest(_FIELD, url, str(error)) from error
    if settings.allow_private:
        return
    try:
        private = find_private(await resolver.resolve(host, _LOOKUP_TIMEOUT_SECONDS))
    except ResolutionFailed:
        return
    if private is not None:
        raise InvalidRequest(_FIELD, url, f"at a public address, and {host} leads to {private}")


def _extract_v4(address: IPv6Address) -> Iterator[IPv4Address]:
    if address in _MAPPED or address in _NAT64:
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
    elif address in _6TO4:
        yield IPv4Address(int(address) >> 80 & 0xFFFF_FFFF)
    elif address in _TEREDO:
        # The server's, and the client's with all bits turned round (RFC 4380, section 4).
        yield IPv4Address(int(address) >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(~int(address) & 0xFFFF_FFFF)
