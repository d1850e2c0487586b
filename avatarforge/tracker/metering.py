"""What one shard's tracker counts and logs of its jobs, and what other processes have told it to add up."""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import structlog

from avatarforge.domain.changes import JobChange
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob, Stage
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import ProcessingStatus
from avatarforge.telemetry import metrics
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.reports import Report, Sums
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.estimates import Forecast
from avatarforge.tracker.fleet_figures import FleetFigures

log = structlog.get_logger(__name__)


class Metering:
    """Counts what is committed; what stands is read when somebody asks."""

    def __init__(
        self,
        figures: Figures,
        jobs: Callable[[], Iterable[ProfilePhotoJob]],
        now: Callable[[], datetime],
    ) -> None:
        """`figures` are the tracker's own, to which its parts add; `jobs` gives the unfinished ones."""
        self._figures = figures
        self._jobs = jobs
        self._now = now
        self._sums = Sums(steady)
        self._fleet = FleetFigures()
        for status in (ProcessingStatus.PENDING, ProcessingStatus.PROCESSING):
            figures.watch(metrics.JOBS, self._in_state(status), status.value)
        figures.watch(metrics.OLDEST_WAITING, self._oldest_waiting)

    def changed(self, change: JobChange) -> None:
        """A committed change: one line in the log and one in the counters, of the same name."""
        job, kind = change.job, change.event.kind
        self._figures.count(metrics.JOB_EVENTS, kind.value)
        if change.is_erasure:
            log.info("job erased", **_identity(change))
        elif job.status.is_terminal:
            self._ended(change)
        elif kind is EventKind.REQUEUED:
            log.info("job requeued", losses=job.losses, **_identity(change))
        else:
            # Two lines for every job that goes well are too many: its end tells when it came and started.
            # Asked of `logging`, since even a line that is not written costs structlog some 20 µs.
            if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
                log.debug(f"job {kind.value}", **_identity(change))
            if kind is EventKind.STARTED and job.attempt == 1 and job.started_at is not None:
                self._figures.observe(metrics.JOB_WAIT, _seconds(job.created_at, job.started_at))

    def take(self, report: Report) -> None:
        """What another process has counted."""
        self._sums.take(report)

    def replica(self, report: ReplicaReport) -> None:
        """What a replica has made."""
        self._fleet.take(report)

    def read(
        self, *, feed_answers: int, forecast: Forecast, replicas: Iterable[ReplicaReport]
    ) -> TrackerFigures:
        """Everything as it stands. `replicas` are those of which this tracker is to tell."""
        own = self._figures.all()
        own.counters[metrics.FEED_ANSWERS.name, ()] = float(feed_answers)
        for gauge, seconds in (
            (metrics.BACKLOG_SECONDS, forecast.backlog_seconds),
            (metrics.LINE_SECONDS, forecast.line_seconds),
        ):
            if seconds is not None:
                own.gauges[gauge.name, ()] = seconds
        reported = self._sums.reading()
        reported.gauges.update(self._fleet.gauges(replicas))
        reported.counters.update(self._fleet.counters())
        reported.gauges[metrics.INGRESS_REPLICAS.name, ()] = float(self._sums.of("ingress"))
        return TrackerFigures(own=own, reported=reported)

    def _in_state(self, status: ProcessingStatus) -> Callable[[], int]:
        return lambda: sum(job.status is status for job in self._jobs())

    def _oldest_waiting(self) -> float:
        waiting = [job.created_at for job in self._jobs() if job.status is ProcessingStatus.PENDING]
        return _seconds(min(waiting), self._now()) if waiting else 0.0

    def _ended(self, change: JobChange) -> None:
        job = change.job
        assert job.finished_at is not None, "set with every terminal state"
        seconds = _seconds(job.created_at, job.finished_at)
        code = "" if job.error is None else job.error.code
        self._figures.count(metrics.JOBS_ENDED, job.status.value, code)
        self._figures.observe(metrics.JOB_SECONDS, seconds, job.status.value)
        for stage, taken in job.timings.items():
            if stage != Stage.QUEUED.value:
                self._figures.observe(metrics.JOB_STAGES, taken, stage)
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
    }


def _seconds(since: datetime, until: datetime) -> float:
    # The clock may have been put back between the two.
    return max(0.0, (until - since).total_seconds())
