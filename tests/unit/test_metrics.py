"""How metrics are collected, and how several processes' metrics become one application's."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import avatarforge
from avatarforge.domain import errors
from avatarforge.telemetry import metrics
from avatarforge.telemetry.aggregation import MetricsAggregator, MetricsReport, MetricsReporter
from avatarforge.telemetry.exposition import ShardMetrics, expose
from avatarforge.telemetry.registry import Histogram, MetricsRegistry, MetricsSnapshot, cumulative
from avatarforge.tracker.queue.attempts import ATTEMPT_FAILURES

REFUSED = (metrics.ERRORS.name, ("rate_limited",))


class SteadyClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tracker:
    """Takes reports, unless it is away or its answer is lost."""

    def __init__(self) -> None:
        self.clock = SteadyClock()
        self.sums = MetricsAggregator(self.clock)
        self.away = False
        self.lose_answers = False

    async def report(self, report: MetricsReport) -> None:
        if self.away:
            raise ConnectionError
        self.sums.take(report)
        if self.lose_answers:
            raise ConnectionError

    def start_again(self) -> None:
        self.sums = MetricsAggregator(self.clock)

    @property
    def refused(self) -> float:
        return self.sums.snapshot().counters.get(REFUSED, 0.0)


class Replica:
    def __init__(self, tracker: Tracker) -> None:
        self.registry = MetricsRegistry()
        self.reporter = MetricsReporter("ingress", self.registry, tracker.report)

    def refuse(self, times: int = 1) -> None:
        self.registry.count(metrics.ERRORS, "rate_limited", by=times)

    async def send_new(self) -> None:
        await self.reporter.send_new()

    async def tell_in_vain(self) -> None:
        with pytest.raises(ConnectionError):
            await self.reporter.send_new()


def scrape(*shards: ShardMetrics | None, accept: str = "") -> str:
    return expose(dict(enumerate(shards)), accept)[0].decode()


async def test_replicas_figures_add_up_and_stay_when_a_replica_leaves() -> None:
    tracker = Tracker()
    leaving, staying = Replica(tracker), Replica(tracker)
    for replica, times in ((leaving, 3), (staying, 4), (leaving, 5)):
        replica.refuse(times)
        await replica.send_new()
    tracker.clock.now += MetricsAggregator.SOURCE_MEMORY_SECONDS + 1
    staying.refuse()
    await staying.send_new()
    assert tracker.refused == 13


async def test_a_report_whose_answer_was_lost_counts_once() -> None:
    tracker = Tracker()
    replica = Replica(tracker)
    replica.refuse(2)
    tracker.lose_answers = True
    await replica.tell_in_vain()
    tracker.lose_answers = False
    replica.refuse()
    await replica.send_new()
    assert tracker.refused == 3


async def test_what_was_counted_while_the_tracker_was_away_arrives_later() -> None:
    tracker = Tracker()
    replica = Replica(tracker)
    tracker.away = True
    for _ in range(3):
        replica.refuse()
        await replica.tell_in_vain()
    tracker.away = False
    await replica.send_new()
    assert tracker.refused == 3


async def test_a_tracker_that_starts_again_begins_at_nought_and_is_not_told_the_past() -> None:
    """Prometheus takes the fall for a reset; the past, told again, would look as if it had just happened."""
    tracker = Tracker()
    replica = Replica(tracker)
    replica.refuse(1000)
    await replica.send_new()
    tracker.start_again()
    replica.refuse()
    await replica.send_new()
    assert tracker.refused == 1


async def test_gauges_of_a_replica_that_fell_silent_are_forgotten() -> None:
    tracker = Tracker()
    for lag, streams in ((0.5, 3), (2.5, 4)):
        replica = Replica(tracker)
        replica.registry.register_gauge(metrics.FEED_LAG, lambda lag=lag: lag)
        replica.registry.register_gauge(metrics.SUBSCRIBERS, lambda streams=streams: streams, "sse")
        await replica.send_new()
        tracker.clock.now += MetricsAggregator.PRESENCE_TIMEOUT_SECONDS / 2
    series = {(metrics.FEED_LAG.name, ()): 2.5, (metrics.SUBSCRIBERS.name, ("sse",)): 7.0}
    assert tracker.sums.snapshot().gauges == series
    assert tracker.sums.count_processes("ingress") == 2
    tracker.clock.now += MetricsAggregator.PRESENCE_TIMEOUT_SECONDS * 0.1
    assert tracker.sums.snapshot().gauges[metrics.SUBSCRIBERS.name, ("sse",)] == 4.0
    assert tracker.sums.count_processes("ingress") == 1


def test_threads_lose_no_count() -> None:
    registry = MetricsRegistry()

    def count() -> None:
        for _ in range(5000):
            registry.count(metrics.ERRORS, "rate_limited")
            registry.observe(metrics.UPLOAD_ACCEPT_DURATION, 0.01)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = MetricsSnapshot()
    while any(thread.is_alive() for thread in threads):
        taken.add(registry.take_new())
    taken.add(registry.take_new())
    assert taken.counters[REFUSED] == 20_000
    assert registry.snapshot().counters == taken.counters
    assert registry.snapshot().histograms == taken.histograms


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_a_histogram_counts_what_is_up_to_each_bound(values: list[float]) -> None:
    histogram = Histogram("h_seconds", "Any.", bounds=(0.1, 1.0, 10.0))
    registry = MetricsRegistry()
    for value in values:
        registry.observe(histogram, value)
    counted = registry.snapshot().histograms.get((histogram.name, ()), [0.0] * 5)
    expected = [(repr(bound), sum(value <= bound for value in values)) for bound in histogram.bounds]
    assert list(cumulative(histogram, counted)) == [*expected, ("+Inf", len(values))]
    assert counted[-1] == pytest.approx(sum(values))


def test_each_shard_has_its_own_series_and_one_that_is_away_has_none() -> None:
    first = MetricsRegistry()
    first.count(metrics.JOB_EVENTS, "done", by=2)
    reported = MetricsSnapshot(counters={REFUSED: 5.0})
    text = scrape(ShardMetrics(own=first.snapshot(), reported=reported), None)
    assert 'avatarforge_job_events_total{kind="done",shard="0"} 2.0' in text
    assert 'avatarforge_errors_total{code="rate_limited"} 5.0' in text
    assert 'avatarforge_tracker_up{shard="0"} 1.0' in text
    assert 'avatarforge_tracker_up{shard="1"} 0.0' in text
    assert 'shard="1",' not in text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=nonsense", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_a_scrape_gets_the_form_that_it_accepts(accept: str, media_type: str) -> None:
    body, told = expose({0: None}, accept)
    assert told.startswith(media_type)
    assert body.endswith(b"# EOF\n") is told.startswith("application/openmetrics-text")


def test_a_declared_series_is_exported_before_it_is_counted() -> None:
    registry = MetricsRegistry()
    registry.declare(metrics.JOB_EVENTS, "done")
    registry.declare(metrics.JOB_EVENTS, "failed")
    registry.count(metrics.JOB_EVENTS, "done")
    text = scrape(ShardMetrics(own=registry.snapshot(), reported=MetricsSnapshot()))
    assert 'avatarforge_job_events_total{kind="done",shard="0"} 1.0' in text
    assert 'avatarforge_job_events_total{kind="failed",shard="0"} 0.0' in text
    # Reports hold only what was counted: each is added up.
    assert registry.take_new().counters == {(metrics.JOB_EVENTS.name, ("done",)): 1.0}


def test_every_error_with_which_a_worker_ends_an_attempt_is_declared() -> None:
    diffusion = Path(avatarforge.__file__).parent / "diffusion"
    raised = {
        name
        for path in diffusion.rglob("*.py")
        for name in re.findall(r"raise (\w+)\(", path.read_text(encoding="utf-8"))
    }
    codes = {kind.code for name in raised if (kind := getattr(errors, name, None)) is not None}
    # A manifest that cannot be used stops a model from being loaded, and a cancelled job has no error.
    assert codes - {errors.ModelUnusable.code, errors.GenerationCancelled.code} <= set(ATTEMPT_FAILURES)


def test_labels_hold_no_ids_and_names_follow_prometheus() -> None:
    for metric in metrics.ALL:
        assert not [label for label in metric.labels if label.endswith("id") or label == "customer"], metric
        kind: Any = type(metric).__name__
        assert metric.name.endswith("_total") is (kind == "Counter"), metric.name
        assert metric.name.startswith("avatarforge_")
        assert metric.help.endswith(".")
