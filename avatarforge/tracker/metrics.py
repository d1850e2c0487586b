"""The metrics and the log of one shard's jobs, and the sums of other processes' metrics."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from avatarforge.background import monotonic
from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import DeadlineExceeded
from avatarforge.domain.jobs import Stage
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import TERMINAL_EVENTS, EventKind, ProcessingStatus
from avatarforge.telemetry import metrics
from avatarforge.telemetry.aggregation import MetricsAggregator, MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.telemetry.registry import Counter, Gauge, MetricsRegistry, Series, merge_gauges
from avatarforge.tracker.eta import Forecaster
from avatarforge.tracker.feed import Feed
from avatarforge.tracker.jobs.job_table import JobTable
from avatarforge.tracker.queue.attempts import ATTEMPT_FAILURES
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry

log = structlog.get_logger(__name__)


class TrackerMetrics:
    """Counts what is committed; gauges are read when somebody asks."""

    def __init__(
        self,
        registry: MetricsRegistry,
        job_table: JobTable,
        feed: Feed,
        forecaster: Forecaster,
        replica_registry: ReplicaRegistry | None,
        now: Callable[[], datetime],
    ) -> None:
        """`registry` are the tracker's own, to which its parts add. Every tracker hears of all replicas; the
        one that gets the `replica_registry` adds their metrics up."""
        self._registry = registry
        self._job_table = job_table
        self._feed = feed
        self._forecaster = forecaster
        self._replica_registry = replica_registry
        self._now = now
        self._aggregator = MetricsAggregator(monotonic)
        self.replicas = ReplicaMetrics()
        self.accepted = 0
        """Images that accepted jobs ask for, since the tracker started."""
        for status in (ProcessingStatus.PENDING, ProcessingStatus.PROCESSING):
            registry.register_gauge(metrics.JOBS, partial(self._count_jobs, status), status.value)
        registry.register_gauge(metrics.OLDEST_WAITING, self._oldest_waiting_seconds)
        for kind in EventKind:
            registry.declare(metrics.JOB_EVENTS, kind.value)
        for ended in (ProcessingStatus.DONE, ProcessingStatus.CANCELLED):
            registry.declare(metrics.JOBS_ENDED, ended.value, "")
        for code in (*ATTEMPT_FAILURES, DeadlineExceeded.code):
            registry.declare(metrics.JOBS_ENDED, ProcessingStatus.FAILED.value, code)

    def on_change(self, change: JobChange) -> None:
        """Write one line in the log and count one event, of the same name. The lines of a start and of an
        image are written by the dispatcher, which knows the replica and the image."""
        job, kind = change.job, change.event.kind
        self._registry.count(metrics.JOB_EVENTS, kind.value)
        self.accepted += job.parameters.variants if change.is_submission else 0
        if change.is_submission or change.is_erasure:
            log.info(f"job {kind.value}", **_identity(change))
        elif kind in TERMINAL_EVENTS and job.finished_at is not None:
            self._record_end(change, job.finished_at)
        elif kind is EventKind.KEPT:
            log.info("image kept", index=job.kept, **_identity(change))
        elif kind is EventKind.REQUEUED:
            log.info("job requeued", worker_losses=job.worker_losses, **_identity(change))
        elif kind is EventKind.STARTED and job.attempt == 1 and job.started_at is not None:
            self._registry.observe(metrics.JOB_WAIT, _seconds(job.created_at, job.started_at))

    def add(self, report: MetricsReport) -> None:
        self._aggregator.take(report)

    def read(self) -> ShardMetrics:
        """Return everything as it stands."""
        own = self._registry.snapshot()
        own.counters[metrics.FEED_READS.name, ()] = float(self._feed.reads)
        forecast = self._forecaster.forecast()
        for gauge, seconds in (
            (metrics.BACKLOG_SECONDS, forecast.backlog_seconds),
            (metrics.ESTIMATED_WAIT, forecast.estimated_wait_seconds),
        ):
            if seconds is not None:
                own.gauges[gauge.name, ()] = seconds
        reported = self._aggregator.snapshot()
        reported.gauges.update(
            self.replicas.gauges(self._replica_registry.all() if self._replica_registry else ())
        )
        reported.counters.update(self.replicas.counters())
        reported.gauges[metrics.INGRESS_REPLICAS.name, ()] = float(
            self._aggregator.count_processes("ingress")
        )
        return ShardMetrics(own=own, reported=reported)

    def _count_jobs(self, status: ProcessingStatus) -> int:
        return sum(job.status is status for job in self._job_table.all())

    def _oldest_waiting_seconds(self) -> float:
        waiting = [job.created_at for job in self._job_table.all() if job.status is ProcessingStatus.PENDING]
        return _seconds(min(waiting), self._now()) if waiting else 0.0

    def _record_end(self, change: JobChange, finished_at: datetime) -> None:
        job = change.job
        seconds = _seconds(job.created_at, finished_at)
        code = "" if job.error is None else job.error.code
        self._registry.count(metrics.JOBS_ENDED, job.status.value, code)
        self._registry.observe(metrics.JOB_SECONDS, seconds, job.status.value)
        for stage, taken in job.timings.items():
            if stage != Stage.QUEUED.value:
                self._registry.observe(metrics.JOB_STAGES, taken, stage)
        outcome = job.outcome
        log.info(
            f"job {change.event.kind.value}",
            **_identity(change),
            seconds=round(seconds, 3),
            **({} if job.error is None else {"code": job.error.code, "reason": job.error.message}),
            **({} if outcome is None else {"backend": outcome.backend, "model": outcome.model}),
        )


def _identity(change: JobChange) -> Mapping[str, object]:
    event = change.event
    return {
        "job_id": event.job_id,
        "customer_id": event.customer_id,
        "attempt": event.attempt,
        "seq": event.seq,
        **change.job.parameters.origin,
    }


def _seconds(since: datetime, until: datetime) -> float:
    # The clock may have been put back between the two.
    return max(0.0, (until - since).total_seconds())


@dataclass(slots=True)
class _Counted:
    """A replica's counters since its model serves; a remote one has no model, and counts all its life."""

    since: datetime | None
    counters: Mapping[tuple[Counter, tuple[str, ...]], float]


class ReplicaMetrics:
    """The sums over the replicas' lives and models.

    A replica reports totals since its model serves. Those of a replica that is heard for the first time are
    where its sums begin: it may have run for days under the tracker before this one, and Prometheus would
    take its past for something that has just happened. A replica that is really new has no past.
    """

    def __init__(self) -> None:
        self._registry = MetricsRegistry()
        self._counted: dict[str, _Counted] = {}

    def add(self, report: ReplicaReport) -> None:
        before = self._counted.get(report.replica_id)
        since = None if report.model is None else report.model.since
        now = self._counted[report.replica_id] = _Counted(since, dict(_counters(report)))
        if before is None:
            past = now.counters
        elif before.since == since:
            past = before.counters
        else:
            past = {}
        for (counter, labels), total in now.counters.items():
            # A series begins with 0, so that its first rise is seen.
            self._registry.count(counter, *labels, by=max(0.0, total - past.get((counter, labels), 0.0)))

    def counters(self) -> dict[Series, float]:
        """Return the sums so far."""
        return self._registry.snapshot().counters

    def gauges(self, reports: Iterable[ReplicaReport]) -> dict[Series, float]:
        """Return the gauges of the replicas that are there. Forgets what the others have counted."""
        reports = tuple(reports)
        present = {report.replica_id for report in reports}
        self._counted = {known: counted for known, counted in self._counted.items() if known in present}
        values: dict[tuple[Gauge, tuple[str, ...]], list[float]] = {
            (metrics.MODEL_LOAD_FAILURES, ()): [report.failure is not None for report in reports],
            (metrics.USER_CONFIG_FAULTS, ()): [bool(report.user_config_faults) for report in reports],
            (metrics.COMPILE_FAILURES, ()): [report.compile_failure is not None for report in reports],
            (metrics.CIRCUITS_OPEN, ()): [report.circuit == "open" for report in reports],
        }
        for report in reports:
            for series, value in _gauges(report):
                values.setdefault(series, []).append(value)
        return {
            (gauge.name, labels): merge_gauges(gauge, several) for (gauge, labels), several in values.items()
        }


def _counters(report: ReplicaReport) -> Iterable[tuple[tuple[Counter, tuple[str, ...]], float]]:
    model = _model(report)
    yield (metrics.IMAGES_GENERATED, (model,)), report.images_generated
    yield (metrics.DEVICE_BUSY, (model,)), report.busy_seconds
    yield (
        (metrics.STEP_IMAGES, (model,)),
        sum(images * steps for images, steps in report.steps_by_images.items()),
    )
    for images, steps in report.steps_by_images.items():
        yield (metrics.STEPS, (model, str(images))), steps


def _gauges(report: ReplicaReport) -> Iterable[tuple[tuple[Gauge, tuple[str, ...]], float]]:
    model = _model(report)
    yield (metrics.REPLICAS, (report.backend, model, report.state.value)), 1
    yield (metrics.IMAGES, (model, "active")), report.active
    yield (metrics.IMAGES, (model, "waiting")), report.waiting
    if report.memory_bytes is not None:
        yield (metrics.DEVICE_MEMORY, (model,)), report.memory_bytes
    for images, seconds in report.step_seconds.items():
        yield (metrics.STEP_SECONDS, (model, str(images))), seconds


def _model(report: ReplicaReport) -> str:
    return "" if report.model is None else report.model.name
