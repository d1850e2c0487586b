"""Looking up host names, with a time limit and never in the way of anything else."""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address, ip_address

IpAddress = IPv4Address | IPv6Address

Resolve = Callable[[str], Sequence[str]]
"""The addresses of a host, best first. Blocks; raises `OSError` or `UnicodeError` where there is none."""


class NameUnresolved(Exception):
    """The host has no address at present. The argument says why."""


class Names:
    """Looks up hosts. An instance may be used from any thread and event loop.

    `getaddrinfo` can take half a minute and cannot be interrupted. Hence the threads: one for each host that
    is being looked up, shared by all who ask for it meanwhile, so that a dead name server costs a host's own
    callers and nobody else. They are daemons, since a process must not wait for them at its end.
    """

    MOST_AT_ONCE = 256
    """Look-ups under way; beyond them one fails at once."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        """`resolve`: by default the system's own, which also reads 2130706433, 0x7f.1 and the like."""
        self._resolve = resolve or _system_addresses
        self._under_way: dict[str, Future[list[IpAddress]]] = {}

    async def addresses(self, host: str, limit: float) -> list[IpAddress]:
        """The host's addresses, best first and at least one. Raises `NameUnresolved`.

        `limit`: seconds to wait for them.
        """
        answer = self._under_way.get(host) or self._begun(host)
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(asyncio.wrap_future(answer))
        except TimeoutError:
            # In a busy process both may fall due at once.
            if answer.done() and answer.exception() is None:
                return answer.result()
            raise NameUnresolved(f"no answer within {limit:g} s") from None
        except OSError as error:
            raise NameUnresolved(error.strerror or str(error)) from error
        except UnicodeError as error:
            raise NameUnresolved("it is no host name") from error

    def _begun(self, host: str) -> "Future[list[IpAddress]]":
        if len(self._under_way) >= self.MOST_AT_ONCE:
            raise NameUnresolved("too many names are being looked up")
        answer: Future[list[IpAddress]] = Future()
        # Those who ask may go away; nobody takes the look-up with them.
        answer.set_running_or_notify_cancel()
        self._under_way[host] = answer
        threading.Thread(target=self._look_up, args=(host, answer), name="look-up", daemon=True).start()
        return answer

    def _look_up(self, host: str, answer: "Future[list[IpAddress]]") -> None:
        try:
            addresses = [ip_address(text) for text in dict.fromkeys(self._resolve(host))]
            if not addresses:
                raise OSError("it has no address")
        except Exception as error:
            outcome: Exception | None = error
        else:
            outcome = None
        # Before the answer: who asks after it is to get a fresh one.
        self._under_way.pop(host, None)
        if outcome is None:
            answer.set_result(addresses)
        else:
            answer.set_exception(outcome)


def _system_addresses(host: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
