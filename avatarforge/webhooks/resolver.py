"""A resolver of host names, with a time limit and never in the way of anything else."""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address, ip_address

IpAddress = IPv4Address | IPv6Address

Lookup = Callable[[str], Sequence[str]]
"""The addresses of a host, best first. Blocks; raises `OSError` or `UnicodeError` where there is none."""


class ResolutionFailed(Exception):
    """The host has no address at present. The argument says why."""


class Resolver:
    """Looks up hosts. An instance may be used from any thread and event loop.

    `getaddrinfo` can take half a minute and cannot be interrupted. Hence the threads: one for each host that
    is being looked up, shared by all who ask for it meanwhile, so that a dead name server costs a host's own
    callers and nobody else. They are daemons, since a process must not wait for them at its end.
    """

    MAX_LOOKUPS = 256
    """Look-ups under way; one more fails at once."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        """`lookup`: by default the system's own, which also reads 2130706433, 0x7f.1 and the like."""
        self._lookup = lookup or _look_up_system
        self._pending: dict[str, Future[list[IpAddress]]] = {}

    async def resolve(self, host: str, timeout_seconds: float) -> list[IpAddress]:
        """Return the host's addresses, best first and at least one. Raises `ResolutionFailed`."""
        answer = self._pending.get(host) or self._start(host)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(asyncio.wrap_future(answer))
        except TimeoutError:
            # In a busy process both may fall due at once.
            if answer.done() and answer.exception() is None:
                return answer.result()
            raise ResolutionFailed(f"no answer within {timeout_seconds:g} s") from None
        except OSError as error:
            raise ResolutionFailed(error.strerror or str(error)) from error
        except UnicodeError as error:
            raise ResolutionFailed("it is no host name") from error

    def _start(self, host: str) -> "Future[list[IpAddress]]":
        if len(self._pending) >= self.MAX_LOOKUPS:
            raise ResolutionFailed("too many names are being looked up")
        answer: Future[list[IpAddress]] = Future()
        # Those who ask may go away; nobody takes the look-up with them.
        answer.set_running_or_notify_cancel()
        self._pending[host] = answer
        threading.Thread(target=self._look_up, args=(host, answer), name="look-up", daemon=True).start()
        return answer

    def _look_up(self, host: str, answer: "Future[list[IpAddress]]") -> None:
        try:
            addresses = [ip_address(text) for text in dict.fromkeys(self._lookup(host))]
            if not addresses:
                raise OSError("it has no address")
        except Exception as error:
            outcome: Exception | None = error
        else:
            outcome = None
        # Before the answer: who asks after it is to get a fresh one.
        self._pending.pop(host, None)
        if outcome is None:
            answer.set_result(addresses)
        else:
            answer.set_exception(outcome)


def _look_up_system(host: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
