"""Jobs whose clients were told that they are not kept, when nobody could be sure."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from avatarforge.domain.errors import AvatarForgeError

log = structlog.get_logger(__name__)


class Disowned:
    """Has the trackers take such jobs back, asking until they answer.

    A tracker that tells its client 503 takes the job back by itself, should it turn out to be committed. This
    is for the one that dies before it can: the next tracker finds the job on record and knows no better.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
    """Seconds between two questions."""
    MOST = 10_000
    """Jobs that are remembered; of more, in an outage that long, the first ones are forgotten."""

    def __init__(self, disown: Callable[[str, str], Awaitable[None]]) -> None:
        """`disown` asks the customer's tracker, and raises while it does not answer."""
        self._disown = disown
        self._waiting: deque[tuple[str, str]] = deque(maxlen=self.MOST)
        self._asking: asyncio.Task[None] | None = None

    def add(self, customer_id: str, job_id: str) -> None:
        """Take the job back, as soon as can be."""
        self._waiting.append((customer_id, job_id))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="disown")

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask_all(self) -> None:
        pause = self.FIRST_PAUSE
        while self._waiting:
            customer_id, job_id = self._waiting[0]
            try:
                await self._disown(customer_id, job_id)
            except AvatarForgeError as error:
                log.info("job is to be taken back", job_id=job_id, reason=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, self.LONGEST_PAUSE)
                continue
            except Exception as error:
                # The edge of a question: one that breaks the tracker's answer must not hold the others up.
                log.error("job cannot be taken back", job_id=job_id, exc_info=error)
            pause = self.FIRST_PAUSE
            if self._waiting and self._waiting[0] == (customer_id, job_id):
                self._waiting.popleft()
