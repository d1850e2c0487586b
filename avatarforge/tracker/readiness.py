"""Whether a tracker has taken its shard over."""

import asyncio
from collections.abc import Callable

from avatarforge.domain.errors import DatabaseUnavailable, TrackerUnavailable


class Readiness:
    """Closed at first; open for good once the tracker knows its jobs."""

    def __init__(self, patience: float, outage: Callable[[], DatabaseUnavailable | None]) -> None:
        """`patience` is in seconds; `outage` tells why the database does not answer at present."""
        self._patience = patience
        self._outage = outage
        self._open = asyncio.Event()

    def begin(self) -> None:
        """The tracker is ready."""
        self._open.set()

    async def reached(self) -> None:
        """Return once the tracker is ready, however long it takes."""
        await self._open.wait()

    async def in_time(self) -> None:
        """Return once the tracker is ready. Raises what stands in the way when patience ends."""
        try:
            async with asyncio.timeout(self._patience):
                await self._open.wait()
        except TimeoutError:
            # In a busy process both may fall due at once.
            if not self._open.is_set():
                raise self._outage() or TrackerUnavailable("it is still starting") from None
