"""Room in memory for the pixels of photos that are being decoded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Room for so many pixels. Who finds none waits, in the order of coming: small ones do not overtake."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._free = pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, pixels: int) -> AsyncIterator[None]:
        """Wait for room and hold it. What is larger than all room takes all of it."""
        pixels = min(pixels, self._pixels)
        await self._take(pixels)
        try:
            yield
        finally:
            self._give(pixels)

    async def _take(self, pixels: int) -> None:
        if not pixels or (not self._waiting and pixels <= self._free):
            self._free -= pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(pixels)
            raise

    def _give(self, pixels: int) -> None:
        self._free += pixels
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if wanted > self._free:
                return
            self._waiting.popleft()
            self._free -= wanted
            turn.set_result(None)
