"""What the replicas have told of themselves last, and the model that has proved good."""

from avatarforge.domain.replicas import ReplicaReport, ReplicaState
from avatarforge.tracker.clocks import Clock


class ReplicaReports:
    """The newest report of each replica. One that falls silent is forgotten."""

    SILENCE = 12.0
    """Seconds without a report after which a replica counts as gone: several reports in a row."""

    def __init__(self, clock: Clock, last_good: str | None = None) -> None:
        """`last_good` is the model on record."""
        self._clock = clock
        self._heard: dict[str, tuple[float, ReplicaReport]] = {}
        self.last_good = last_good
        """The model that served last as it was wished; `None` before any has."""

    def take(self, report: ReplicaReport) -> None:
        """Keep the report. A model that serves as it was wished is the last good one, unless another replica
        serves a newer wish."""
        self._heard[report.replica_id] = (self._clock(), report)
        fulfilled = [
            told.model
            for told in self.all()
            if told.backend == "local" and told.model is not None and told.model.name == told.wish
        ]
        if fulfilled:
            self.last_good = max(fulfilled, key=lambda model: model.since).name

    def all(self) -> tuple[ReplicaReport, ...]:
        """The reports of all that are there, in the order of their ids."""
        silent_since = self._clock() - self.SILENCE
        for replica_id in [known for known, (at, _) in self._heard.items() if at < silent_since]:
            del self._heard[replica_id]
        return tuple(self._heard[replica_id][1] for replica_id in sorted(self._heard))

    @property
    def serving(self) -> int:
        """How many of our own replicas serve a model."""
        return sum(report.backend == "local" and report.model is not None for report in self.all())

    @property
    def local_is_empty(self) -> bool:
        """Whether our own replicas are there and none has a model or is about to have its first one."""
        states = [report.state for report in self.all() if report.backend == "local"]
        return bool(states) and all(state is ReplicaState.EMPTY for state in states)
