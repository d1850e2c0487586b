"""Ports for the inner servers of one cluster."""

import random
import socket
from dataclasses import dataclass

_FIRST, _LAST, _SIZE = 20_000, 30_000, 100
"""Below 32768, where systems begin to hand out ports for outgoing connections: a port from there that is
free now may be taken by the time that its server starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PortBlock:
    """Ports that no other AvatarForge of this machine uses until `release`."""

    first: int
    _reservation: socket.socket

    @property
    def fallback_proxy(self) -> int:
        return self.first

    @property
    def statistics(self) -> int:
        return self.first + 1

    @property
    def metrics(self) -> int:
        return self.first + 2

    @property
    def fallback_proxy_grpc(self) -> int:
        return self.first + 3

    @property
    def replicas_http(self) -> range:
        """For the ingress replicas' own servers, to which HAProxy passes requests."""
        return range(self.first + 10, self.first + 50)

    @property
    def replicas_grpc(self) -> range:
        return range(self.first + 50, self.first + 90)

    def release(self) -> None:
        self._reservation.close()


def reserve_ports() -> PortBlock:
    """A block of which nothing is in use. A socket on its last port keeps others out, however we end."""
    blocks = list(range(_FIRST, _LAST, _SIZE))
    random.shuffle(blocks)
    for first in blocks:
        try:
            reservation = _bind(first + _SIZE - 1)
        except OSError:
            continue
        if all(_is_free(port) for port in range(first, first + 12)):
            return PortBlock(first=first, _reservation=reservation)
        reservation.close()
    raise OSError(f"No {_SIZE} ports in a row are free between {_FIRST} and {_LAST}.")


def _is_free(port: int) -> bool:
    try:
        _bind(port).close()
    except OSError:
        return False
    return True


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        raise
    return bound
