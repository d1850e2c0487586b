"""Forecasts of when jobs will be done, from measured times and from the jobs that stand before them."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate, count

from avatarforge.domain.changes import JobChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import GenerationParameters, Outcome, ProfilePhotoJob, Stage
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.replicas import ReplicaReport, ServedModel
from avatarforge.domain.status import EventKind
from avatarforge.tracker.jobs.job_table import JobTable
from avatarforge.tracker.queue.dispatcher import Dispatcher, RunningJob
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry

LOCAL = "local"


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The queue at one moment, and how long its jobs are expected to take."""

    order: tuple[str, ...] = ()
    """Ids of the first waiting jobs, next one first."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds until each of them, and each running job, is done; empty while nothing was measured."""
    estimated_wait_seconds: float | None = None
    """Seconds until a job at the end of the queue would be done; `None` while nothing was measured."""
    backlog_seconds: float | None = None
    """Seconds that one replica would need for all that waits and runs; `None` while nothing was measured."""


class _MovingAverage:
    """An average that follows the last ten or so values, and means something from the first one on."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Add a value that was met so many times."""
        kept_weight = (1 - self.WEIGHT) ** times
        self._sum = self._sum * kept_weight + value * (1 - kept_weight)
        self._weight = self._weight * kept_weight + (1 - kept_weight)

    @property
    def value(self) -> float:
        """The average; 0 before the first value."""
        return self._sum / self._weight if self._weight else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speed:
    """The speed of our own replicas together, for one tracker."""

    replicas: float
    """As many as one tracker has of them: a part, where it shares them with others."""
    slots: int
    """Images in the making at once."""
    tables: Sequence[Mapping[int, float]]
    """Of each replica, seconds of a step by the number of images."""
    model: ServedModel
    coding: float
    """Seconds that an image holds a replica's device up, beside its steps."""

    def step_seconds(self, images: int) -> float:
        """Return the seconds of a step, with so many images in all replicas together."""
        each = images / self.replicas
        return sum(_find_step_seconds(table, each) for table in self.tables) / len(self.tables)

    def steps_of(self, parameters: GenerationParameters) -> float:
        """Return the steps of a job, counted in those of an image of the model's own size."""
        steps = self.model.steps_of(parameters.steps, parameters.strength)
        return steps * self.model.share_of_pixels(parameters)

    def cost(self, steps: float) -> float:
        """Return the seconds of one replica that a job takes while all slots are in use."""
        return steps * self.step_seconds(self.slots) * self.replicas / self.slots + self.coding


_StepsLeft = tuple[str, float]
"""A job's id and the steps left of one image of it."""


class EtaModel:
    """Learns from the replicas' reports and from finished jobs, and forecasts when the others are done.

    A forecast simulates the replicas: images share the steps of a batch, a slot that becomes free goes to the
    next job in the queue, and each image costs its encoding and decoding besides. It takes time in proportion
    to the images of the jobs that it is given, however long the queue behind them is.
    """

    def __init__(self, shards: int = 1) -> None:
        """`shards` trackers share the replicas."""
        self._shards = shards
        self._speed: _Speed | None = None
        self._before: dict[str, ReplicaReport] = {}
        self._coding = _MovingAverage()
        self._fetch, self._upload, self._remote_job, self._remote_share = (_MovingAverage() for _ in range(4))

    # --- learning -------------------------------------------------------------------------------------

    def learn_from_report(self, report: ReplicaReport) -> None:
        """Learn the cost of an image beside its steps, from the work since the report before."""
        if report.backend != LOCAL or report.model is None:
            return
        before = self._before.get(report.replica_id)
        if (
            before is None
            or before.model != report.model
            or before.images_generated > report.images_generated
        ):
            self._before[report.replica_id] = report
            return
        images = report.images_generated - before.images_generated
        if images:
            self._before[report.replica_id] = report
            busy = report.busy_seconds - before.busy_seconds
            beside = busy - (report.busy_step_seconds - before.busy_step_seconds)
            self._coding.add(max(0.0, beside) / images, images)

    def keep_only(self, replica_ids: Collection[str]) -> None:
        """Forget the reports of all replicas but these."""
        self._before = {known: report for known, report in self._before.items() if known in replica_ids}

    def learn_from_outcome(self, outcome: Outcome) -> None:
        """Learn from the outcome of a job that is DONE."""
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
        queue_length: int,
        reports: Sequence[ReplicaReport],
        seconds_per_image: float | None,
    ) -> Forecast:
        """`waiting` are the first jobs of a queue that waits for `queue_length` images, in their order.

        Where no step times are known, or most jobs go to a remote server, `seconds_per_image` counts: the
        time from one finished image to the next.
        """
        here = [entry for entry in running if entry.backend == LOCAL]
        images = sum(len(entry.job.missing) for entry in here)
        # Without a replica that serves, its successor is expected to be like it.
        self._speed = speed = self._measure_speed(reports, images) or self._speed
        if speed is None or self._remote_share.value > 0.5:
            return _forecast_from_throughput(running, waiting, queue_length, seconds_per_image)
        making = _list_steps_left(speed, here)
        coming = [
            (job.job_id, steps)
            for job in waiting
            for steps in [speed.steps_of(job.parameters)] * len(job.missing)
        ]
        seconds, newcomer = self._simulate(speed, making, coming)
        for entry in running:
            if entry.backend != LOCAL:
                seconds[entry.job.job_id] = _estimate_share_left(entry.progress) * self._remote_job.value
        costs = [speed.cost(steps) for _, steps in coming]
        unseen = (queue_length - len(costs)) * sum(costs) / len(costs) if costs else 0.0
        return Forecast(
            order=tuple(job.job_id for job in waiting),
            seconds=seconds,
            estimated_wait_seconds=newcomer + unseen / speed.replicas,
            backlog_seconds=unseen + sum(costs) + sum(speed.cost(left) for _, left in making),
        )

    def _measure_speed(self, reports: Sequence[ReplicaReport], images: int) -> _Speed | None:
        """`images` are this tracker's in the replicas."""
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
            share = images / max(images, in_all) if images else 1 / self._shards
        newest = max((report.model for report in serving if report.model), key=lambda model: model.since)
        return _Speed(
            replicas=len(serving) * share,
            slots=max(1, round(sum(report.limit for report in serving) * share)),
            tables=[report.step_seconds for report in serving],
            model=newest,
            coding=self._coding.value,
        )

    def _simulate(
        self, speed: _Speed, making: Sequence[_StepsLeft], coming: Sequence[_StepsLeft]
    ) -> tuple[dict[str, float], float]:
        """Return the seconds until each is done, and until one that joined the queue now would be."""
        queue = deque(
            [
                *((job_id, left, 0.0) for job_id, left in making),
                *((job_id, left, self._fetch.value) for job_id, left in coming),
            ]
        )
        # Those that have a slot, by the number of steps at which each ends: all take the same steps.
        active: list[tuple[float, int, str, float]] = []
        seconds: dict[str, float] = {}
        now, steps, places = 0.0, 0.0, count()
        newcomer: float | None = None
        while True:
            while queue and len(active) < speed.slots:
                job_id, left, fetch = queue.popleft()
                # Later ones are fetched while they wait.
                beside = self._upload.value + (fetch if now == 0 else 0.0)
                heappush(active, (steps + left, next(places), job_id, beside))
            if newcomer is None and len(active) < speed.slots:
                own = speed.model.steps_of(None, None) * speed.step_seconds(len(active) + 1) + speed.coding
                newcomer = now + own + self._upload.value + (self._fetch.value if now == 0 else 0.0)
            if not active:
                assert newcomer is not None, "nobody is in the making"
                return seconds, newcomer
            ends, _, job_id, beside = active[0]
            now += (ends - steps) * speed.step_seconds(len(active)) + speed.coding / speed.replicas
            steps = ends
            heappop(active)
            # Of several images the last one counts.
            seconds[job_id] = beside + now


def _find_step_seconds(table: Mapping[int, float], images: float) -> float:
    """Return the seconds of a step of the next larger size that was measured; beyond them in proportion."""
    larger = [size for size in table if size >= images]
    if larger:
        return table[min(larger)]
    most = max(table)
    return table[most] * images / most


def _list_steps_left(speed: _Speed, running: Sequence[RunningJob]) -> list[_StepsLeft]:
    """Return the steps left of each image, alike for all that an attempt makes; first those begun."""
    begun: list[_StepsLeft] = []
    fetched: list[_StepsLeft] = []
    for entry in running:
        progress, images = entry.progress, len(entry.job.missing)
        if progress is None or not progress.total_steps:
            fetched += [(entry.job.job_id, speed.steps_of(entry.job.parameters))] * images
        else:
            left = max(0, progress.total_steps - progress.step)
            share = speed.model.share_of_pixels(entry.job.parameters)
            begun += [(entry.job.job_id, left * share / images)] * images
    return begun + fetched


def _estimate_share_left(progress: GenerationProgress | None) -> float:
    if progress is None or not progress.total_steps:
        return 1.0
    return 1 - progress.step / progress.total_steps


def _forecast_from_throughput(
    running: Sequence[RunningJob],
    waiting: Sequence[ProfilePhotoJob],
    queue_length: int,
    seconds_per_image: float | None,
) -> Forecast:
    order = tuple(job.job_id for job in waiting)
    if seconds_per_image is None:
        return Forecast(order=order)
    ahead = sum(len(entry.job.missing) for entry in running)
    places = accumulate(len(job.missing) for job in waiting)
    seconds = {
        job_id: seconds_per_image * (ahead + place) for job_id, place in zip(order, places, strict=True)
    }
    for entry in running:
        seconds[entry.job.job_id] = seconds_per_image * ahead * _estimate_share_left(entry.progress)
    return Forecast(
        order=order,
        seconds=seconds,
        estimated_wait_seconds=seconds_per_image * (ahead + queue_length + 1),
        backlog_seconds=seconds_per_image * (ahead + queue_length),
    )


class Forecaster:
    """Learns from the replicas' reports and from finished jobs, and forecasts the queue as it stands."""

    MAX_LISTED = 1000
    """Images that the jobs wait for whose place is told."""

    def __init__(
        self, shards: int, job_table: JobTable, dispatcher: Dispatcher, replica_registry: ReplicaRegistry
    ) -> None:
        """`shards` trackers share the replicas."""
        self._model = EtaModel(shards)
        self._job_table = job_table
        self._dispatcher = dispatcher
        self._replica_registry = replica_registry

    def learn_from_report(self, report: ReplicaReport) -> None:
        """Learn from a report that the registry has, too."""
        self._model.learn_from_report(report)
        self._model.keep_only({known.replica_id for known in self._replica_registry.all()})

    def on_change(self, change: JobChange) -> None:
        job = change.job
        if change.event.kind is EventKind.DONE and job.outcome is not None:
            self._model.learn_from_outcome(job.outcome)

    def forecast(self) -> Forecast:
        """Forecast when the running jobs and the first waiting ones will be done."""
        find, dispatcher = self._job_table.get, self._dispatcher
        order = dispatcher.queue.list_next(self.MAX_LISTED)
        return self._model.forecast(
            [running for running in dispatcher.running_jobs.values() if find(running.job.job_id) is not None],
            [job for job_id in order if (job := find(job_id)) is not None],
            queue_length=dispatcher.queue.image_count,
            reports=self._replica_registry.all(),
            seconds_per_image=dispatcher.throughput.interval,
        )
