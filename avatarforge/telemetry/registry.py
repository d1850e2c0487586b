"""Metrics of one process: plain numbers, which travel to the tracker and add up there."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds for durations of milliseconds."""
LONG_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds for the waits of jobs."""

Scope = Literal["shard", "application"]
"""Each shard has its own series, or all ingress replicas have one together."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of series. Labels never hold ids: their values are few and known."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    scope: Scope = "application"

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels, `shard` included."""
        return ("shard", *self.labels) if self.scope == "shard" else self.labels


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A number that only rises, until its process starts again."""


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A number that rises and falls; of several processes' the sum counts, or the highest or lowest."""

    merge_by: Literal["sum", "max", "min"] = "sum"


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Counts by upper bound, and the sum of the values."""

    bounds: tuple[float, ...] = SECONDS


Series = tuple[str, tuple[str, ...]]
"""A metric's name and its labels' values."""


@dataclass(kw_only=True, slots=True)
class MetricsSnapshot:
    """Values of many series at one moment, or what has been added between two."""

    counters: dict[Series, float] = field(default_factory=dict)
    histograms: dict[Series, list[float]] = field(default_factory=dict)
    """For each bound how many were up to it and above the one before, then those above all, then the sum."""
    gauges: dict[Series, float] = field(default_factory=dict)

    def add(self, other: "MetricsSnapshot") -> None:
        """Add the other's counters and histograms to these; its gauges stay out."""
        for series, value in other.counters.items():
            self.counters[series] = self.counters.get(series, 0.0) + value
        for series, values in other.histograms.items():
            mine = self.histograms.setdefault(series, [0.0] * len(values))
            for place, value in enumerate(values):
                mine[place] += value

    def copy(self) -> "MetricsSnapshot":
        return MetricsSnapshot(
            counters=dict(self.counters),
            histograms={series: list(values) for series, values in self.histograms.items()},
            gauges=dict(self.gauges),
        )


class MetricsRegistry:
    """The counters, histograms and gauges of one process. Counting is for any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since_taken = MetricsSnapshot()
        self._taken = MetricsSnapshot()
        self._gauges: dict[Series, Callable[[], float]] = {}
        self._declared: dict[Series, float] = {}

    def declare(self, counter: Counter, *labels: str) -> None:
        """Export the series from now on, with 0 until it is counted: Prometheus sees no rise in the first
        value that it hears of a series."""
        self._declared[counter.name, labels] = 0.0

    def register_gauge(self, gauge: Gauge, read: Callable[[], float], *labels: str) -> None:
        """Call `read` whenever a snapshot is taken."""
        self._gauges[gauge.name, labels] = read

    def count(self, counter: Counter, *labels: str, by: float = 1.0) -> None:
        series = (counter.name, labels)
        with self._lock:
            counters = self._since_taken.counters
            counters[series] = counters.get(series, 0.0) + by

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        series = (histogram.name, labels)
        with self._lock:
            values = self._since_taken.histograms.get(series)
            if values is None:
                values = self._since_taken.histograms[series] = [0.0] * (len(histogram.bounds) + 2)
            values[bisect_left(histogram.bounds, value)] += 1
            values[-1] += value

    @contextmanager
    def time_call(
        self, histogram: Histogram, *labels: str, errors: Mapping[type[Exception], str]
    ) -> Iterator[None]:
        """Observe the seconds of the block, with its outcome as the last label: `ok`, the name that `errors`
        has for what it raises, or `error`."""
        began, outcome = perf_counter(), "error"
        try:
            yield
            outcome = "ok"
        except tuple(errors) as error:
            outcome = next(name for kind, name in errors.items() if isinstance(error, kind))
            raise
        finally:
            self.observe(histogram, perf_counter() - began, *labels, outcome)

    def take_new(self) -> MetricsSnapshot:
        """Return what has come since the last call, and the gauges."""
        gauges = self._read_gauges()
        with self._lock:
            taken, self._since_taken = self._since_taken, MetricsSnapshot()
            self._taken.add(taken)
        taken.gauges = gauges
        return taken

    def snapshot(self) -> MetricsSnapshot:
        """Return everything since the start, declared series too, and the gauges."""
        gauges = self._read_gauges()
        snapshot = self.zeros()
        with self._lock:
            snapshot.add(self._taken)
            snapshot.add(self._since_taken)
        snapshot.gauges = gauges
        return snapshot

    def zeros(self) -> MetricsSnapshot:
        """Return the declared series, none of them counted."""
        return MetricsSnapshot(counters=dict(self._declared))

    def _read_gauges(self) -> dict[Series, float]:
        return {series: float(read()) for series, read in self._gauges.items()}


def merge_gauges(gauge: Gauge, values: Iterable[float]) -> float:
    """Return the one value that stands for several processes'."""
    match gauge.merge_by:
        case "max":
            return max(values)
        case "min":
            return min(values)
    return sum(values)


def cumulative(histogram: Histogram, values: list[float]) -> Iterator[tuple[str, float]]:
    """Yield the bounds in Prometheus' notation, each with how many values were up to it."""
    total = 0.0
    for bound, value in zip((*histogram.bounds, float("inf")), values, strict=False):
        total += value
        yield "+Inf" if bound == float("inf") else repr(bound), total
