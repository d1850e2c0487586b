"""Prometheus' text format of the metrics, or OpenMetrics where that is asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from avatarforge.domain.pickling import pickle_by_name
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import Counter, Histogram, Metric, MetricsSnapshot, cumulative

OPENMETRICS = "application/openmetrics-text"


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMetrics:
    """The metrics that one tracker has."""

    own: MetricsSnapshot
    """Of its shard."""
    reported: MetricsSnapshot
    """Of other processes, as they told it."""


def expose(shards: Mapping[int, ShardMetrics | None], accept: str) -> tuple[bytes, str]:
    """Return the response to a scrape, and its media type.

    A tracker that did not answer is `None`: its series are absent, and `avatarforge_tracker_up` says so.
    """
    collected = _Families(list(families(shards)))
    # prometheus-client's own choice stumbles over versions that are none.
    if OPENMETRICS in accept:
        text: bytes = openmetrics.generate_latest(collected)  # type: ignore[no-untyped-call]  # theirs
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(collected), CONTENT_TYPE_PLAIN_0_0_4


def families(shards: Mapping[int, ShardMetrics | None]) -> Iterator[Family]:
    """Yield all metrics of the catalogue, those without a sample too."""
    samples = _Samples()
    for shard, known in shards.items():
        samples.values.setdefault(metrics.TRACKER_UP.name, []).append(([str(shard)], float(bool(known))))
        if known is not None:
            samples.add(known.own, str(shard))
            # What the others count has no shard: Prometheus takes an empty label for none.
            samples.add(known.reported, "")
    for metric in metrics.ALL:
        yield _family(metric, samples)


@dataclass(slots=True)
class _Samples:
    """Values by metric, with their labels'."""

    values: dict[str, list[tuple[list[str], float]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[list[str], list[float]]]] = field(default_factory=dict)

    def add(self, snapshot: MetricsSnapshot, shard: str) -> None:
        for (name, labels), value in (*snapshot.counters.items(), *snapshot.gauges.items()):
            self.values.setdefault(name, []).append((_labels(name, labels, shard), value))
        for (name, labels), values in snapshot.histograms.items():
            self.histograms.setdefault(name, []).append((_labels(name, labels, shard), values))


def _labels(name: str, labels: Sequence[str], shard: str) -> list[str]:
    return [shard, *labels] if metrics.BY_NAME[name].scope == "shard" else list(labels)


def _family(metric: Metric, samples: _Samples) -> Family:
    if isinstance(metric, Histogram):
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names)
        for labels, values in samples.histograms.get(metric.name, ()):
            histogram.add_metric(labels, list(cumulative(metric, values)), values[-1])
        return histogram
    kind = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.label_names)
    for labels, value in samples.values.get(metric.name, ()):
        family.add_metric(labels, value)
    return family


class _Families(Collector):
    def __init__(self, collected: list[Family]) -> None:
        self._collected = collected

    def collect(self) -> Iterable[Family]:
        return self._collected
