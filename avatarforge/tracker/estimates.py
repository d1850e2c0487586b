"""When jobs will be done: from measured times, and from what stands before them."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob, Stage
from avatarforge.domain.replicas import ReplicaReport, ServedModel

LOCAL = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that a replica has."""

    job: ProfilePhotoJob
    backend: str
    progress: GenerationProgress | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The line, and what is expected of it, at one moment."""

    order: tuple[str, ...] = ()
    """Ids of the first waiting jobs, next one first."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds until each of them, and each running job, is done; empty while nothing was measured."""
    line_seconds: float | None = None
    """Seconds until a job at the end of the whole line would be done; `None` while nothing was measured."""
    backlog_seconds: float | None = None
    """Seconds that one replica would need for all that waits and runs; `None` while nothing was measured."""


class _Mean:
    """An average that follows the last ten or so values, and means something from the first one on."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Take in a value that was met so many times."""
        kept = (1 - self.WEIGHT) ** times
        self._sum = self._sum * kept + value * (1 - kept)
        self._weight = self._weight * kept + (1 - kept)

    @property
    def value(self) -> float:
        """0 before the first."""
        return self._sum / self._weight if self._weight else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speed:
    """What our own replicas do together, for one tracker."""

    replicas: float
    """As many as one tracker has of them: a part, where it shares them with others."""
    slots: int
    """Images in the making at once."""
    tables: Sequence[Mapping[int, float]]
    """Of each replica, seconds of a step by the number of images."""
    model: ServedModel
    coding: float
    """Seconds that a picture holds a replica's device up, beside its steps."""

    def step_seconds(self, images: int) -> float:
        """Of a step, with so many images in all replicas together."""
        each = images / self.replicas
        return sum(_looked_up(table, each) for table in self.tables) / len(self.tables)

    def steps_of(self, parameters: GenerationParameters) -> int:
        return self.model.steps_of(parameters.steps, parameters.strength)

    def cost(self, steps: int) -> float:
        """Seconds of one replica that a job takes while all slots are in use."""
        return steps * self.step_seconds(self.slots) * self.replicas / self.slots + self.coding


class Estimates:
    """Learns from the replicas' reports and from finished jobs, and forecasts when the others are done.

    A forecast plays through what the replicas are going to do: images share the steps of a batch, a slot
    that becomes free goes to the next in line, and each picture costs its encoding and decoding besides.
    It takes time in proportion to the jobs that it is given, however long the line behind them is.
    """

    def __init__(self, shards: int = 1) -> None:
        """`shards` trackers share the replicas."""
        self._shards = shards
        self._speed: _Speed | None = None
        self._before: dict[str, ReplicaReport] = {}
        self._coding = _Mean()
        self._fetch, self._upload, self._remote_job, self._remote_share = (_Mean() for _ in range(4))

    # --- learning -------------------------------------------------------------------------------------

    def reported(self, report: ReplicaReport) -> None:
        """Learn what a picture costs beside its steps, from what was done since the report before."""
        if report.backend != LOCAL or report.model is None:
            return
        before = self._before.get(report.replica_id)
        if before is None or before.model != report.model or before.pictures > report.pictures:
            self._before[report.replica_id] = report
            return
        pictures = report.pictures - before.pictures
        if pictures:
            self._before[report.replica_id] = report
            beside = report.busy_seconds - before.busy_seconds - _seconds_in_steps(before, report)
            self._coding.add(max(0.0, beside) / pictures, pictures)

    def forget(self, replica_ids: Collection[str]) -> None:
        """Keep what is known of these replicas' reports only."""
        self._before = {known: report for known, report in self._before.items() if known in replica_ids}

    def finished(self, job: ProfilePhotoJob) -> None:
        """Learn from a job that is DONE."""
        outcome = job.outcome
        assert outcome is not None, "told of finished jobs only"
        is_remote = outcome.backend != LOCAL
        self._remote_share.add(is_remote)
        if is_remote:
            self._remote_job.add(sum(outcome.timings.values()))
        else:
            self._fetch.add(outcome.timings.get(Stage.FETCH, 0.0))
            self._upload.add(outcome.timings.get(Stage.UPLOAD, 0.0))

    # --- forecasting ----------------------------------------------------------------------------------

    def forecast(
        self,
        running: Sequence[RunningJob],
        waiting: Sequence[ProfilePhotoJob],
        *,
        line: int,
        reports: Sequence[ReplicaReport],
        seconds_per_job: float | None,
    ) -> Forecast:
        """`waiting` are the first of a line of so many jobs, in their order.

        Where no step times are known, or most jobs go to a remote server, `seconds_per_job` counts: the
        time from one finished job to the next.
        """
        here = [entry for entry in running if entry.backend == LOCAL]
        # Without a replica that serves, its successor is expected to be like it.
        self._speed = speed = self._speed_of(reports, len(here)) or self._speed
        if speed is None or self._remote_share.value > 0.5:
            return _by_pace(running, waiting, line, seconds_per_job)
        seconds, newcomer = self._played(speed, here, waiting)
        for entry in running:
            if entry.backend != LOCAL:
                seconds[entry.job.job_id] = _share_left(entry.progress) * self._remote_job.value
        costs = [speed.cost(speed.steps_of(job.parameters)) for job in waiting]
        unseen = (line - len(waiting)) * sum(costs) / len(costs) if costs else 0.0
        return Forecast(
            order=tuple(job.job_id for job in waiting),
            seconds=seconds,
            line_seconds=newcomer + unseen / speed.replicas,
            backlog_seconds=unseen
            + sum(costs)
            + sum(speed.cost(_steps_left(speed, entry)) for entry in here),
        )

    def _speed_of(self, reports: Sequence[ReplicaReport], running: int) -> _Speed | None:
        serving = [
            report
            for report in reports
            if report.backend == LOCAL and report.model is not None and report.step_seconds
        ]
        if not serving:
            return None
        share = 1.0
        if self._shards > 1:
            in_all = sum(report.active + report.waiting for report in serving)
            share = running / max(running, in_all) if running else 1 / self._shards
        newest = max((report.model for report in serving if report.model), key=lambda model: model.since)
        return _Speed(
            replicas=len(serving) * share,
            slots=max(1, round(sum(report.limit for report in serving) * share)),
            tables=[report.step_seconds for report in serving],
            model=newest,
            coding=self._coding.value,
        )

    def _played(
        self, speed: _Speed, running: Sequence[RunningJob], waiting: Sequence[ProfilePhotoJob]
    ) -> tuple[dict[str, float], float]:
        """Seconds until each is done, and until one that came now, to the end of the line, would be."""
        begun = [entry for entry in running if entry.progress is not None and entry.progress.total_steps]
        fetched = [entry for entry in running if entry not in begun]
        queue = deque(
            [
                *((entry.job.job_id, _steps_left(speed, entry), 0.0) for entry in (*begun, *fetched)),
                *((job.job_id, speed.steps_of(job.parameters), self._fetch.value) for job in waiting),
            ]
        )
        # Who is in the making, by the number of steps at which it ends: all take the same steps.
        making: list[tuple[int, int, str]] = []
        seconds: dict[str, float] = {}
        now, steps, places = 0.0, 0, count()
        newcomer: float | None = None
        while True:
            while queue and len(making) < speed.slots:
                job_id, left, fetch = queue.popleft()
                # Later ones are fetched while they wait.
                seconds[job_id] = self._upload.value + (fetch if now == 0 else 0.0)
                heappush(making, (steps + left, next(places), job_id))
            if newcomer is None and len(making) < speed.slots:
                own = speed.model.steps_of(None, None) * speed.step_seconds(len(making) + 1) + speed.coding
                newcomer = now + own + self._upload.value + (self._fetch.value if now == 0 else 0.0)
            if not making:
                assert newcomer is not None, "nobody is in the making"
                return seconds, newcomer
            ends, _, job_id = making[0]
            now += (ends - steps) * speed.step_seconds(len(making)) + speed.coding / speed.replicas
            steps = ends
            heappop(making)
            seconds[job_id] += now


def _looked_up(table: Mapping[int, float], images: float) -> float:
    """Seconds of a step, from the next larger size that was measured; beyond them in proportion."""
    larger = [size for size in table if size >= images]
    if larger:
        return table[min(larger)]
    most = max(table)
    return table[most] * images / most


def _seconds_in_steps(before: ReplicaReport, after: ReplicaReport) -> float:
    return sum(
        (times - before.steps_by_images.get(images, 0)) * _looked_up(after.step_seconds, images)
        for images, times in after.steps_by_images.items()
        if after.step_seconds
    )


def _steps_left(speed: _Speed, entry: RunningJob) -> int:
    progress = entry.progress
    if progress is None or not progress.total_steps:
        return speed.steps_of(entry.job.parameters)
    return max(0, progress.total_steps - progress.step)


def _share_left(progress: GenerationProgress | None) -> float:
    if progress is None or not progress.total_steps:
        return 1.0
    return 1 - progress.step / progress.total_steps


def _by_pace(
    running: Sequence[RunningJob],
    waiting: Sequence[ProfilePhotoJob],
    line: int,
    seconds_per_job: float | None,
) -> Forecast:
    """From nothing but how fast jobs come out."""
    order = tuple(job.job_id for job in waiting)
    if seconds_per_job is None:
        return Forecast(order=order)
    ahead = len(running)
    seconds = {job_id: seconds_per_job * (ahead + place) for place, job_id in enumerate(order, start=1)}
    for entry in running:
        seconds[entry.job.job_id] = seconds_per_job * ahead * _share_left(entry.progress)
    return Forecast(
        order=order,
        seconds=seconds,
        line_seconds=seconds_per_job * (ahead + line + 1),
        backlog_seconds=seconds_per_job * (ahead + line),
    )
