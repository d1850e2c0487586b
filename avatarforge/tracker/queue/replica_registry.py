"""The replicas' latest reports, and the model that has proved good."""

from avatarforge.background import Clock
from avatarforge.domain.replicas import ReplicaReport, ReplicaState


class ReplicaRegistry:
    """The newest report of each replica. One that falls silent is forgotten."""

    TIMEOUT_SECONDS = 12.0
    """Seconds without a report after which a replica counts as gone: several reports in a row."""

    def __init__(self, clock: Clock, last_good: str | None = None) -> None:
        """`last_good` is the model on record."""
        self._clock = clock
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        self.last_good = last_good
        """The model that served last as desired; `None` before any has."""

    def add(self, report: ReplicaReport) -> None:
        """Keep the report. A model that serves as desired is the last good one, unless another replica
        serves a newer one."""
        self._reports[report.replica_id] = (self._clock(), report)
        as_desired = [
            told.model
            for told in self.all()
            if told.backend == "local" and told.model is not None and told.model.name == told.desired_model
        ]
        if as_desired:
            self.last_good = max(as_desired, key=lambda model: model.since).name

    def all(self) -> tuple[ReplicaReport, ...]:
        """Return the newest report of every replica that has not fallen silent, in the order of their ids."""
        silent_since = self._clock() - self.TIMEOUT_SECONDS
        for replica_id in [known for known, (at, _) in self._reports.items() if at < silent_since]:
            del self._reports[replica_id]
        return tuple(self._reports[replica_id][1] for replica_id in sorted(self._reports))

    @property
    def serving_count(self) -> int:
        """The number of our own replicas that serve a model."""
        return sum(report.backend == "local" and report.model is not None for report in self.all())

    @property
    def is_local_empty(self) -> bool:
        """True if our own replicas are there and none has a model or is about to have its first one."""
        states = [report.state for report in self.all() if report.backend == "local"]
        return bool(states) and all(state is ReplicaState.NO_MODEL for state in states)
