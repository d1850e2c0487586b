"""Connections of webhooks: only to addresses that were checked, and never for more bytes than wanted."""

# ruff: noqa: ASYNC109 - the interface is httpcore's.

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from avatarforge.webhooks.address_policy import find_private
from avatarforge.webhooks.resolver import IpAddress, ResolutionFailed, Resolver


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Looks a host up, checks its addresses and dials one of those very addresses.

    A name that leads elsewhere the next time has nothing to gain, because there is no next time between the
    check and the connection. TLS and the `Host` header still have the name.
    """

    MAX_ADDRESSES_TRIED = 4
    """Addresses of a host that are tried in turn; they share the time limit."""

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the host's addresses. Raises `httpcore.ConnectError` or `ConnectTimeout`."""
        if timeout is None:
            raise ValueError("a connection of a webhook needs a time limit")
        clock = asyncio.get_running_loop().time
        ends_at = clock() + timeout
        addresses = await self._resolve(host, timeout)
        failure: Exception = httpcore.ConnectTimeout(f"no connection within {timeout:g} s")
        for number, address in enumerate(addresses):
            share = (ends_at - clock()) / (len(addresses) - number)
            if share <= 0:
                break
            try:
                stream = await self._inner.connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
            except httpcore.ConnectTimeout:
                failure = httpcore.ConnectTimeout(f"no connection to {address} within {share:.1f} s")
            except httpcore.ConnectError:
                failure = httpcore.ConnectError(f"no connection to {address}, port {port}")
            else:
                return ResponseStream(stream)
        raise failure

    async def _resolve(self, host: str, timeout: float) -> list[IpAddress]:
        try:
            addresses = await self._resolver.resolve(host, timeout)
        except ResolutionFailed as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from error
        private = None if self._allow_private else find_private(addresses)
        if private is not None:
            raise httpcore.ConnectError(f"{host} leads to {private}, which is not a public address")
        return addresses[: self.MAX_ADDRESSES_TRIED]

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("webhooks do not go to sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class ResponseStream(httpcore.AsyncNetworkStream):
    """A connection that breaks off when an answer is too long, whatever it is made of.

    Time limits alone let a receiver send interim answers or headers as fast as it can, and reading them
    would take the whole event loop's time.
    """

    MAX_RESPONSE_BYTES = 32 * 1024
    """Of an answer, its headers included."""
    MAX_READ_BYTES = 8 * 1024

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._left = self.MAX_RESPONSE_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise httpcore.ReadError(f"the answer is longer than {self.MAX_RESPONSE_BYTES} bytes")
        piece = await self._inner.read(min(max_bytes, self.MAX_READ_BYTES, self._left), timeout)
        self._left -= len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # A request goes out: what comes next is its answer.
        self._left = self.MAX_RESPONSE_BYTES
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return ResponseStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
