"""Aggregation: the metrics of many processes become those of the whole application.

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

from avatarforge.domain.pickling import pickle_by_name
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import Gauge, MetricsRegistry, MetricsSnapshot, Series, merge_gauges


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsReport:
    """The metrics that a process has collected since its last report."""

    source: str
    """One life of one process."""
    kind: str
    """What it is, such as `ingress`."""
    number: int
    metrics: MetricsSnapshot


class MetricsReporter:
    """Sends a process's metrics. Several calls at a time are made one after the other."""

    def __init__(
        self, kind: str, registry: MetricsRegistry, send: Callable[[MetricsReport], Awaitable[None]]
    ) -> None:
        """`send` raises when there was no answer."""
        self._source = secrets.token_hex(8)
        self._kind = kind
        self._registry = registry
        self._send = send
        self._number = 0
        self._unanswered: MetricsReport | None = None
        self._lock = asyncio.Lock()

    async def send_new(self) -> None:
        """Send what is new. Raises like `send`; what was not answered goes with the next call."""
        async with self._lock:
            if self._unanswered is not None:
                await self._send_once(self._unanswered)
            self._number += 1
            report = MetricsReport(
                source=self._source, kind=self._kind, number=self._number, metrics=self._registry.take_new()
            )
            await self._send_once(report)

    async def _send_once(self, report: MetricsReport) -> None:
        self._unanswered = report
        await self._send(report)
        self._unanswered = None


@dataclass(slots=True)
class _Source:
    kind: str
    number: int
    gauges: dict[Series, float]
    heard_at: float


class MetricsAggregator:
    """The reports of many processes, added up."""

    PRESENCE_TIMEOUT_SECONDS = 15.0
    """Time without a report after which a process counts as gone, and its gauges with it."""
    SOURCE_MEMORY_SECONDS = 3600.0
    """Time after which a silent process is forgotten, so that a report of before would count again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sums = MetricsSnapshot()
        self._sources: dict[str, _Source] = {}

    def take(self, report: MetricsReport) -> None:
        """Add a report, unless it is known."""
        now = self._clock()
        known = self._sources.get(report.source)
        if known is None or report.number > known.number:
            self._sums.add(report.metrics)
            self._sources[report.source] = _Source(
                report.kind, report.number, dict(report.metrics.gauges), now
            )
        else:
            known.heard_at = now
        for source, last in list(self._sources.items()):
            if now - last.heard_at > self.SOURCE_MEMORY_SECONDS:
                del self._sources[source]

    def count_processes(self, kind: str) -> int:
        return sum(source.kind == kind for source in self._present())

    def snapshot(self) -> MetricsSnapshot:
        """Return the sums since the start, and the gauges of the processes that are there."""
        snapshot = self._sums.copy()
        values: dict[Series, list[float]] = {}
        for source in self._present():
            for series, value in source.gauges.items():
                values.setdefault(series, []).append(value)
        for series, several in values.items():
            metric = metrics.BY_NAME[series[0]]
            assert isinstance(metric, Gauge), "only gauges are reported as such"
            snapshot.gauges[series] = merge_gauges(metric, several)
        return snapshot

    def _present(self) -> list[_Source]:
        now = self._clock()
        return [
            source
            for source in self._sources.values()
            if now - source.heard_at <= self.PRESENCE_TIMEOUT_SECONDS
        ]
