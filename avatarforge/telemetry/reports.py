"""How figures of many processes become those of the whole application.

Each ingress replica tells what has been added since its last report that was answered, and a tracker adds it
up. So nothing falls when a replica leaves, and when the *tracker* starts again the sums begin at nought,
which Prometheus takes for what it is: a reset. Sending totals instead would let all of the living replicas'
past appear at once after such a start, as if it had just happened.

A report whose answer was lost is sent again under its number, and counts once. Only when the tracker dies in
that moment, too, its content may be in the sums of two lives.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures, Gauge, Reading, Series, merged


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a process has counted since its report before."""

    source: str
    """One life of one process."""
    kind: str
    """What it is, such as `ingress`."""
    number: int
    reading: Reading


class Reporter:
    """Sends a process's figures. Several calls at a time are made one after the other."""

    def __init__(
        self,
        kind: str,
        figures: Figures,
        send: Callable[[Report], Awaitable[None]],
    ) -> None:
        """`send` raises when there was no answer."""
        self._source = secrets.token_hex(8)
        self._kind = kind
        self._figures = figures
        self._send = send
        self._number = 0
        self._unanswered: Report | None = None
        self._turn = asyncio.Lock()

    async def tell(self) -> None:
        """Send what is new. Raises as `send`; what was not answered goes with the next call."""
        async with self._turn:
            if self._unanswered is not None:
                await self._sent(self._unanswered)
            self._number += 1
            report = Report(
                source=self._source, kind=self._kind, number=self._number, reading=self._figures.take()
            )
            await self._sent(report)

    async def _sent(self, report: Report) -> None:
        self._unanswered = report
        await self._send(report)
        self._unanswered = None


@dataclass(slots=True)
class _Source:
    kind: str
    number: int
    gauges: dict[Series, float]
    heard_at: float


class Sums:
    """The reports of many processes, added up."""

    SILENCE = 15.0
    """Seconds without a report after which a process counts as gone, and its gauges with it."""
    MEMORY = 3600.0
    """Seconds after which a silent process is forgotten, so that a report of before would count again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sums = Reading()
        self._sources: dict[str, _Source] = {}

    def take(self, report: Report) -> None:
        """Add a report, unless it is known."""
        now = self._clock()
        known = self._sources.get(report.source)
        if known is None or report.number > known.number:
            self._sums.add(report.reading)
            self._sources[report.source] = _Source(
                report.kind, report.number, dict(report.reading.gauges), now
            )
        else:
            known.heard_at = now
        for source, last in list(self._sources.items()):
            if now - last.heard_at > self.MEMORY:
                del self._sources[source]

    def of(self, kind: str) -> int:
        """How many processes of that kind are there."""
        return sum(source.kind == kind for source in self._present())

    def reading(self) -> Reading:
        """Sums since the start, and the gauges of those that are there."""
        reading = self._sums.copied()
        values: dict[Series, list[float]] = {}
        for source in self._present():
            for series, value in source.gauges.items():
                values.setdefault(series, []).append(value)
        for series, several in values.items():
            metric = metrics.BY_NAME[series[0]]
            assert isinstance(metric, Gauge), "only gauges are reported as such"
            reading.gauges[series] = merged(metric, several)
        return reading

    def _present(self) -> list[_Source]:
        now = self._clock()
        return [source for source in self._sources.values() if now - source.heard_at <= self.SILENCE]
