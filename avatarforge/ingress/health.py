"""Whether this replica can keep a promise: its database, its storage and its tracker answer."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from avatarforge.domain.errors import AvatarForgeError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartHealth:
    """What one part answered."""

    ok: bool
    detail: str
    ms: float
    """How long the answer took, in milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """What all parts answered, at one time."""

    parts: Mapping[str, PartHealth]

    @property
    def ready(self) -> bool:
        return all(part.ok for part in self.parts.values())


class Probe:
    """Asks one part, in a thread. A part that hangs is not asked again before it has answered."""

    def __init__(self, ask: Callable[[], None], time_limit: float) -> None:
        self._ask = ask
        self._time_limit = time_limit
        self._under_way: asyncio.Future[None] | None = None

    async def health(self) -> PartHealth:
        started = time.perf_counter()
        ok, detail = await self._answer()
        return PartHealth(ok=ok, detail=detail, ms=round((time.perf_counter() - started) * 1000, 1))

    async def _answer(self) -> tuple[bool, str]:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(asyncio.to_thread(self._ask))
            # An answer that comes after the time limit is looked at by nobody; asyncio would complain.
            self._under_way.add_done_callback(lambda late: late.cancelled() or late.exception())
        finished, _ = await asyncio.wait({self._under_way}, timeout=self._time_limit)
        if not finished:
            return False, f"no answer within {self._time_limit:g} s"
        error = self._under_way.exception()
        if error is None:
            return True, "answers"
        if isinstance(error, AvatarForgeError):
            log.warning("part is not ready", code=error.code, reason=getattr(error, "reason", str(error)))
            return False, str(error)
        log.error("part's check broke", exc_info=error)
        return False, "the check itself broke; see the log"


class HealthChecks:
    """Readiness of this replica, asked anew at most once in `max_age` seconds.

    `ask` names each part that blocks and how to ask it: it raises when the part does not answer.
    `feed_lag` gives the seconds since the tracker last answered.
    """

    def __init__(
        self,
        ask: Mapping[str, Callable[[], None]],
        feed_lag: Callable[[], float],
        *,
        time_limit: float = 3,
        most_lag: float = 6,
        max_age: float = 1,
    ) -> None:
        self._probes = {part: Probe(check, time_limit) for part, check in ask.items()}
        self._feed_lag = feed_lag
        self._most_lag = most_lag
        self._max_age = max_age
        self._asking = asyncio.Lock()
        self._latest: Readiness | None = None
        self._asked_at = float("-inf")

    async def readiness(self) -> Readiness:
        async with self._asking:
            if self._latest is None or time.monotonic() - self._asked_at >= self._max_age:
                self._latest = await self._asked()
                self._asked_at = time.monotonic()
            return self._latest

    async def _asked(self) -> Readiness:
        answers = await asyncio.gather(*(probe.health() for probe in self._probes.values()))
        return Readiness(parts={**dict(zip(self._probes, answers, strict=True)), "tracker": self._tracker()})

    def _tracker(self) -> PartHealth:
        lag = self._feed_lag()
        if lag == float("inf"):
            return PartHealth(ok=False, detail="has not answered yet", ms=0)
        detail = f"last answered {lag:.1f} s ago"
        return PartHealth(ok=lag <= self._most_lag, detail=detail, ms=round(lag * 1000, 1))
