"""What a tracker knows of the replicas, and what it expects of its jobs because of that."""

from collections.abc import Callable
from typing import Protocol

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.tracker.clocks import Clock
from avatarforge.tracker.estimates import Estimates, Forecast, RunningJob
from avatarforge.tracker.reports import ReplicaReports


class Dispatching(Protocol):
    """What is asked of the dispatcher."""

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> dict[str, str]: ...

    @property
    def figures(self) -> tuple[float | None, int]: ...

    def order(self, most: int) -> tuple[str, ...]: ...


class Outlook:
    """Keeps the replicas' reports, learns from them and from finished jobs, and forecasts."""

    SHOWN = 1000
    """Waiting jobs whose place is told."""

    def __init__(
        self,
        shards: int,
        clock: Clock,
        *,
        dispatching: Callable[[], Dispatching],
        job: Callable[[str], ProfilePhotoJob | None],
        progress: Callable[[str], GenerationProgress | None],
    ) -> None:
        """`shards` trackers share the replicas; `job` and `progress` tell of unfinished jobs by their id."""
        self.replicas = ReplicaReports(clock)
        self._estimates = Estimates(shards)
        self._dispatching = dispatching
        self._job = job
        self._progress = progress

    def reported(self, report: ReplicaReport) -> None:
        """A replica tells of itself."""
        self.replicas.take(report)
        self._estimates.reported(report)
        self._estimates.forget({known.replica_id for known in self.replicas.all()})

    def finished(self, job: ProfilePhotoJob) -> None:
        """A job is DONE."""
        self._estimates.finished(job)

    def forecast(self) -> Forecast:
        """The line as it stands, and when its jobs and the running ones are expected to be done."""
        dispatching = self._dispatching()
        running = [
            RunningJob(job=job, backend=backend, progress=self._progress(job_id))
            for job_id, backend in dispatching.running.items()
            if (job := self._job(job_id)) is not None
        ]
        order = dispatching.order(self.SHOWN)
        return self._estimates.forecast(
            running,
            [job for job_id in order if (job := self._job(job_id)) is not None],
            line=dispatching.waiting,
            reports=self.replicas.all(),
            seconds_per_job=dispatching.figures[0],
        )
