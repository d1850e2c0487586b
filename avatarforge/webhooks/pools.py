"""Connections to receivers, kept open for a while for the next call."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpcore


@dataclass(slots=True, eq=False)
class _Host:
    pool: httpcore.AsyncConnectionPool
    calls: int = 0
    """Calls under way."""
    closing: asyncio.TimerHandle | None = None
    """Set while it is unused."""


class ConnectionPools:
    """One pool for each host that is called, closed when nobody has used it for a while.

    One pool for all of them would be simpler and slow: httpcore looks at each connection for each other one
    whenever a call begins or ends.
    """

    MAX_IDLE_SECONDS = 20.0
    """How long a host's connections stay open unused."""
    MAX_IDLE_HOSTS = 64
    """Hosts whose connections stay open unused; the one that was used longest ago is closed."""

    def __init__(self, new_pool: Callable[[], httpcore.AsyncConnectionPool]) -> None:
        self._new_pool = new_pool
        self._hosts: dict[str, _Host] = {}
        self._idle: dict[str, None] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def pool_for(self, origin: str) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        """Lend the connections to this host for one call."""
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(self._new_pool())
        host.calls += 1
        self._idle.pop(origin, None)
        if host.closing is not None:
            host.closing.cancel()
            host.closing = None
        try:
            yield host.pool
        finally:
            host.calls -= 1
            if not host.calls:
                self._mark_idle(origin, host)

    async def close(self) -> None:
        """Close all. No call may be under way."""
        for origin in list(self._hosts):
            self._close(origin)
        await asyncio.gather(*self._closing)

    def _mark_idle(self, origin: str, host: _Host) -> None:
        self._idle[origin] = None
        host.closing = asyncio.get_running_loop().call_later(self.MAX_IDLE_SECONDS, self._close, origin)
        if len(self._idle) > self.MAX_IDLE_HOSTS:
            self._close(next(iter(self._idle)))

    def _close(self, origin: str) -> None:
        self._idle.pop(origin, None)
        host = self._hosts.pop(origin)
        if host.closing is not None:
            host.closing.cancel()
        task = asyncio.create_task(host.pool.aclose(), name="close connections")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
