"""Limits of what is served at a time. Over a limit a caller is refused at once.

Only for memory to decode photos does one wait.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from avatarforge.domain.errors import AvatarForgeError, TooManyStreams, TooManyStreamsOfCustomer


class ConcurrencyLimit:
    """At most `limit` at a time."""

    def __init__(self, limit: int, make_error: Callable[[int], AvatarForgeError]) -> None:
        """`make_error` gets the limit and makes the error for a caller who is over it."""
        self._limit = limit
        self._make_error = make_error
        self.in_use = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot as long as the context is open. Raises the limit's error."""
        if self.in_use >= self._limit:
            raise self._make_error(self._limit)
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1


class StreamLimit:
    """A limit of open streams, and one for the streams of each customer."""

    def __init__(self, limit: int, limit_per_customer: int) -> None:
        self._total = ConcurrencyLimit(limit, TooManyStreams)
        self._limit_per_customer = limit_per_customer
        self._customers: Counter[str] = Counter()

    @contextmanager
    def slot(self, customer_id: str) -> Iterator[None]:
        """Hold a slot as long as the context is open. Raises `TooManyStreams` or
        `TooManyStreamsOfCustomer`."""
        if self._customers[customer_id] >= self._limit_per_customer:
            raise TooManyStreamsOfCustomer(self._limit_per_customer)
        with self._total.slot():
            self._customers[customer_id] += 1
            try:
                yield
            finally:
                self._customers[customer_id] -= 1
                if not self._customers[customer_id]:
                    del self._customers[customer_id]


class PixelBudget:
    """Pixels that may be in memory at a time. Callers wait in the order in which they come: small requests
    do not overtake."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._free = pixels
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, pixels: int) -> AsyncIterator[None]:
        """Wait until so many pixels are free, and hold them. A request above the budget takes all of it."""
        pixels = min(pixels, self._pixels)
        await self._acquire(pixels)
        try:
            yield
        finally:
            self._release(pixels)

    async def _acquire(self, pixels: int) -> None:
        if not pixels or (not self._waiters and pixels <= self._free):
            self._free -= pixels
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((pixels, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release(pixels)
            raise

    def _release(self, pixels: int) -> None:
        self._free += pixels
        while self._waiters:
            requested, granted = self._waiters[0]
            if granted.done():
                self._waiters.popleft()
                continue
            if requested > self._free:
                return
            self._waiters.popleft()
            self._free -= requested
            granted.set_result(None)
