"""Jobs to be erased whose clients were told that they are not kept, when nobody could be sure."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from avatarforge.background import Backoff, retry
from avatarforge.domain.errors import AvatarForgeError

log = structlog.get_logger(__name__)


class Retractions:
    """Has a tracker erase such jobs, asking until it answers.

    A tracker that answers 503 erases the job by itself, should it turn out to be committed. This is for the
    one that dies before it can: the next tracker finds the job on record and knows no better.
    """

    BACKOFF = Backoff(first=0.2, longest=5.0)
    MAX_WAITING = 10_000
    """Jobs that are remembered; of more, in an outage that long, the first ones are forgotten."""

    def __init__(self, retract: Callable[[str, str], Awaitable[None]]) -> None:
        """`retract` asks the customer's tracker, and raises while it does not answer."""
        self._retract = retract
        self._waiting: deque[tuple[str, str]] = deque(maxlen=self.MAX_WAITING)
        self._asking: asyncio.Task[None] | None = None

    def add(self, customer_id: str, job_id: str) -> None:
        """Have the job erased, as soon as can be."""
        self._waiting.append((customer_id, job_id))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="retract")

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask_all(self) -> None:
        while self._waiting:
            customer_id, job_id = first = self._waiting[0]
            try:
                ask = partial(self._retract, customer_id, job_id)
                await retry(ask, AvatarForgeError, self.BACKOFF, on_error=partial(_log_waiting, job_id))
            except Exception as error:
                # The edge of a question: one that breaks the tracker's answer must not hold the others up.
                log.error("job cannot be retracted", job_id=job_id, exc_info=error)
            if self._waiting and self._waiting[0] == first:
                self._waiting.popleft()


def _log_waiting(job_id: str, error: AvatarForgeError, _: float) -> None:
    log.info("job is to be retracted", job_id=job_id, reason=str(error))
