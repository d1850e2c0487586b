"""From counts to a load: how long an image takes a replica, and how much work arrives."""

import math

from avatarforge.autoscaling.backlog_poller import Counts
from avatarforge.autoscaling.desired_replicas import Load


class LoadEstimator:
    """An estimate of the load, by how long an image takes: as the trackers say, or else by counting.

    A job of several images counts as so many jobs here. The counted time of one is that of a replica divided
    by those that it does side by side, so that batches count as what they are. A job that runs alone takes
    longer by this measure than one of eight.
    """

    MEMORY_JOBS = 50.0
    """Done jobs after which one weighs a third."""
    MEMORY_SECONDS = 60.0
    """Seconds after which an arrival weighs a third: bursts show in the backlog, what is under them here.
    When nothing has come for so long, nothing is expected any more."""

    def __init__(self) -> None:
        self._last: Counts | None = None
        self._told: float | None = None
        self._busy = 0.0
        self._done = 0.0
        self._demand = 0.0
        self._arrival_at = float("-inf")

    @property
    def job_seconds(self) -> float | None:
        """Seconds of a replica for one job, `None` while unknown."""
        if self._told is not None:
            return self._told
        return self._busy / self._done if self._done else None

    def load(self, counts: Counts, replicas: int) -> Load:
        """The load by newer counts than those of the last call, while `replicas` run."""
        before, self._last = self._last, counts
        # What runs is half done, as a rule.
        jobs = counts.waiting + counts.running / 2
        if counts.waiting and counts.backlog_seconds:
            # Of what runs the trackers know how little is left: that says less about whole jobs.
            self._told = counts.backlog_seconds / jobs
        if before is not None and counts.at > before.at:
            self._measure(before, counts, replicas)
        backlog = counts.backlog_seconds
        if backlog is None and self.job_seconds is not None:
            backlog = jobs * self.job_seconds
        # The trackers' jobs are also those that another server makes; images are of our own replicas.
        unfinished = min(counts.unfinished, counts.waiting + counts.running)
        return Load(unfinished=unfinished, backlog_seconds=backlog, demand=self._demand)

    def _measure(self, before: Counts, counts: Counts, replicas: int) -> None:
        seconds = counts.at - before.at
        done = counts.finished - before.finished
        kept = math.exp(-done / self.MEMORY_JOBS)
        self._busy = self._busy * kept + min(replicas, counts.running) * seconds
        self._done = self._done * kept + done
        if self.job_seconds is not None:
            rate = (counts.accepted - before.accepted) * self.job_seconds / seconds
            kept = math.exp(-seconds / self.MEMORY_SECONDS)
            self._demand = self._demand * kept + rate * (1 - kept)
        if counts.accepted > before.accepted:
            self._arrival_at = counts.at
        elif counts.at - self._arrival_at > self.MEMORY_SECONDS:
            self._demand = 0.0
