"""The replicas' reports as metrics: what they count is added up, what stands is read off the newest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from avatarforge.domain.replicas import ReplicaReport
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Counter, Figures, Gauge, Series, merged


@dataclass(slots=True)
class _Counted:
    """What a replica has counted since its model serves; a remote one has none, and counts all its life."""

    since: datetime | None
    counters: Mapping[tuple[Counter, tuple[str, ...]], float]


class FleetFigures:
    """Adds up over the replicas' lives and models.

    A replica reports totals since its model serves. Those of a replica that is heard for the first time are
    where its sums begin: it may have run for days under the tracker before this one, and Prometheus would
    take its past for something that has just happened. A replica that is really new has no past.
    """

    def __init__(self) -> None:
        self._figures = Figures()
        self._counted: dict[str, _Counted] = {}

    def take(self, report: ReplicaReport) -> None:
        """Add what is new in the report."""
        before = self._counted.get(report.replica_id)
        since = None if report.model is None else report.model.since
        now = self._counted[report.replica_id] = _Counted(since, dict(_counters(report)))
        if before is None:
            return
        past = before.counters if before.since == since else {}
        for (counter, labels), total in now.counters.items():
            if (added := total - past.get((counter, labels), 0.0)) > 0:
                self._figures.count(counter, *labels, by=added)

    def counters(self) -> dict[Series, float]:
        """The sums so far."""
        return self._figures.all().counters

    def gauges(self, reports: Iterable[ReplicaReport]) -> dict[Series, float]:
        """How the replicas that are there stand. Forgets what the others have counted."""
        reports = tuple(reports)
        present = {report.replica_id for report in reports}
        self._counted = {known: counted for known, counted in self._counted.items() if known in present}
        values: dict[tuple[Gauge, tuple[str, ...]], list[float]] = {
            (metrics.WISHES_FAILED, ()): [report.failure is not None for report in reports],
            (metrics.CIRCUITS_OPEN, ()): [report.circuit == "open" for report in reports],
        }
        for report in reports:
            for series, value in _gauges(report):
                values.setdefault(series, []).append(value)
        return {(gauge.name, labels): merged(gauge, several) for (gauge, labels), several in values.items()}


def _counters(report: ReplicaReport) -> Iterable[tuple[tuple[Counter, tuple[str, ...]], float]]:
    model = _model(report)
    yield (metrics.PICTURES, (model,)), report.pictures
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
    if report.memory is not None:
        yield (metrics.DEVICE_MEMORY, (model,)), report.memory
    for images, seconds in report.step_seconds.items():
        yield (metrics.STEP_SECONDS, (model, str(images))), seconds


def _model(report: ReplicaReport) -> str:
    return "" if report.model is None else report.model.name
