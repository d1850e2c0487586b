"""Health of this replica: do its database, its storage and its tracker answer?"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from avatarforge.domain.errors import AvatarForgeError
from avatarforge.messages import Message

log = structlog.get_logger(__name__)


class PartMessage(Message):
    ok: bool
    detail: str
    ms: float
    """How long the answer took, in milliseconds; for the tracker how long ago it was."""


class ReadinessMessage(Message):
    ready: bool
    parts: dict[str, PartMessage]


class Probe:
    """Asks one part, in a thread. A part that hangs is not asked again before it has answered."""

    def __init__(self, part: str, ask: Callable[[], None], timeout_seconds: float) -> None:
        self._part = part
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._check: asyncio.Future[None] | None = None
        self._was_ok = True

    async def health(self) -> PartMessage:
        started = time.perf_counter()
        ok, detail = await self._ask_in_time()
        return PartMessage(ok=ok, detail=detail, ms=round((time.perf_counter() - started) * 1000, 1))

    async def _ask_in_time(self) -> tuple[bool, str]:
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(asyncio.to_thread(self._ask))
            # An answer that comes after the time limit is looked at by nobody; asyncio would complain.
            self._check.add_done_callback(lambda late: late.cancelled() or late.exception())
        finished, _ = await asyncio.wait({self._check}, timeout=self._timeout_seconds)
        if not finished:
            detail = f"no answer within {self._timeout_seconds:g} s"
            self._note(detail)
            return False, detail
        error = self._check.exception()
        if error is None:
            if not self._was_ok:
                log.info("part is ready again", part=self._part)
            self._was_ok = True
            return True, "answers"
        if isinstance(error, AvatarForgeError):
            self._note(getattr(error, "reason", str(error)))
            return False, str(error)
        if self._was_ok:
            log.error("part's check broke", part=self._part, exc_info=error)
        self._was_ok = False
        return False, "the check itself broke; see the log"

    def _note(self, reason: str) -> None:
        # Once, however often one asks.
        if self._was_ok:
            log.warning("part is not ready", part=self._part, reason=reason)
        self._was_ok = False


class HealthChecks:
    """Readiness of this replica, asked anew at most once in `max_age_seconds`.

    `ask` names each part that blocks and how to ask it: it raises when the part does not answer.
    `feed_lag` gives the seconds since the tracker last answered, `tracker_outage` why it accepts no uploads.
    """

    def __init__(
        self,
        ask: Mapping[str, Callable[[], None]],
        feed_lag: Callable[[], float],
        *,
        tracker_outage: Callable[[], str | None] = lambda: None,
        timeout_seconds: float = 3,
        max_lag_seconds: float = 6,
        max_age_seconds: float = 1,
    ) -> None:
        self._probes = {part: Probe(part, check, timeout_seconds) for part, check in ask.items()}
        self._feed_lag = feed_lag
        self._tracker_outage = tracker_outage
        self._max_lag_seconds = max_lag_seconds
        self._max_age_seconds = max_age_seconds
        self._lock = asyncio.Lock()
        self._latest: ReadinessMessage | None = None
        self._checked_at = float("-inf")

    async def readiness(self) -> ReadinessMessage:
        async with self._lock:
            if self._latest is None or time.monotonic() - self._checked_at >= self._max_age_seconds:
                self._latest = await self._check_all()
                self._checked_at = time.monotonic()
            return self._latest

    async def _check_all(self) -> ReadinessMessage:
        answers = await asyncio.gather(*(probe.health() for probe in self._probes.values()))
        parts = {**dict(zip(self._probes, answers, strict=True)), "tracker": self._tracker()}
        return ReadinessMessage(ready=all(part.ok for part in parts.values()), parts=parts)

    def _tracker(self) -> PartMessage:
        lag, outage = self._feed_lag(), self._tracker_outage()
        is_known = lag != float("inf")
        detail = f"last answered {lag:.1f} s ago" if is_known else "has not answered yet"
        return PartMessage(
            ok=lag <= self._max_lag_seconds and outage is None,
            detail=detail if outage is None else f"{detail}: {outage}",
            ms=round(lag * 1000, 1) if is_known else 0,
        )
