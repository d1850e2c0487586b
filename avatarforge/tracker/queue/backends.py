"""The backends: where images are made, and which jobs each of them may take now."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from avatarforge.background import Clock, monotonic
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import RemoteSettings
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.ports import RemoteFallback, Replicas, Reservation
from avatarforge.tracker.queue.fair_queue import FairQueue
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry


class Throughput:
    """Seconds between two finished images while there was always work, as an exponential average."""

    WEIGHT = 0.2
    """Share of the newest interval: the last ten or so images decide."""

    def __init__(self) -> None:
        self.running = 0
        """Images under way."""
        self.interval: float | None = None
        """Seconds, `None` until the first image has finished."""
        self._busy_since: float | None = None

    def expect_interval(self, at: float) -> float | None:
        """Return the expected seconds an image: at least those since the last one; `None` if unknown."""
        silence = 0.0 if self._busy_since is None else at - self._busy_since
        return max(self.interval or 0.0, silence) or None

    def record_start(self, at: float, images: int) -> None:
        """Note that so many images were begun, at `at` seconds of any steady clock."""
        self.running += images
        if self._busy_since is None:
            self._busy_since = at

    def record_image(self, at: float) -> None:
        """Note that an image is there."""
        if self._busy_since is not None:
            interval = at - self._busy_since
            known = interval if self.interval is None else self.interval
            self.interval = known + self.WEIGHT * (interval - known)
            self._busy_since = at
        self.record_end(1)

    def record_end(self, images: int) -> None:
        """Note that so many are made no more. Those that never came say nothing about the speed."""
        self.running -= images
        if not self.running:
            self._busy_since = None


class Backend:
    """One source of slots, with the dispatcher's experience of it."""

    def __init__(self, name: str, replicas: Replicas, overall: Throughput, clock: Clock = monotonic) -> None:
        """`overall` is of all backends together."""
        self.name = name
        self.wake = asyncio.Event()
        """Set when a job has come that it may take, or that is the first in the queue."""
        self.finished = 0
        """Images that it has made, since the tracker started."""
        self._images: dict[str, int] = {}
        """Job ids to the images that it is still to make of the job."""
        self._replicas = replicas
        self._clock = clock
        self._throughput, self._overall = Throughput(), overall
        self._asking_since: float | None = None
        self._ended_at = clock()
        self._backs_off_until = float("-inf")

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Reservation]:
        """Wait for a free slot and hold it. One is waited for at a time."""
        async with AsyncExitStack() as stack:
            self._asking_since = self._clock()
            try:
                reservation = await stack.enter_async_context(self._replicas.reserve())
            finally:
                # Before the slot is used: while it is, the next one is asked for.
                self._asking_since = None
            yield reservation

    def register_gauges(self, registry: MetricsRegistry) -> None:
        registry.register_gauge(metrics.ATTEMPTS_RUNNING, lambda: self.running_count, self.name)
        registry.register_gauge(metrics.BACKEND_AVAILABLE, lambda: not self.is_away, self.name)
        registry.register_gauge(metrics.BACKEND_STARVED, lambda: self.starved_seconds, self.name)

    def record_start(self, job: ProfilePhotoJob) -> None:
        """Note that the job has a slot."""
        self._images[job.job_id] = len(job.missing)
        for throughput in (self._throughput, self._overall):
            throughput.record_start(self._clock(), len(job.missing))

    def record_image(self, job_id: str) -> None:
        """Note that one of several images is there."""
        self.finished += 1
        self._images[job_id] -= 1
        for throughput in (self._throughput, self._overall):
            throughput.record_image(self._clock())
        self.wake.set()

    def record_end(self, job_id: str, *, has_image: bool = False) -> None:
        """Note that the job's slot is free again, with or without the last of its images."""
        if has_image:
            self.record_image(job_id)
        self._ended_at = self._clock()
        left = self._images.pop(job_id)
        for throughput in (self._throughput, self._overall):
            throughput.record_end(left)
        self.wake.set()

    def back_off(self, seconds: float) -> None:
        """Take nothing for so long: its server is away."""
        self._backs_off_until = max(self._backs_off_until, self._clock() + seconds)

    @property
    def running_count(self) -> int:
        """Jobs that have a slot."""
        return len(self._images)

    @property
    def image_count(self) -> int:
        """Images that it is still to make of them."""
        return self._throughput.running

    def count_images(self, most: int) -> int:
        """Return the images that it is still to make, at most so many of each job."""
        return sum(min(left, most) for left in self._images.values())

    @property
    def is_away(self) -> bool:
        return self._clock() < self._backs_off_until

    @property
    def starved_seconds(self) -> float:
        """Seconds for which it has been asked for a slot while it runs nothing; 0 while it runs something."""
        if self._asking_since is None or self.running_count:
            return 0.0
        return self._clock() - max(self._asking_since, self._ended_at)

    def estimate_seconds(self, waiting: int) -> float:
        """Return the seconds until it has made so many images beside those under way; 0 while unknown."""
        return (self._throughput.expect_interval(self._clock()) or 0.0) * (self.image_count + waiting)


class Backends:
    """Our own replicas and, where there is one, the remote server.

    A job that may not leave the house never goes to the remote one, whatever the policy. A job that one
    backend has failed goes to the other, if that one may have it and answers.
    """

    def __init__(
        self,
        local: Replicas,
        remote: RemoteFallback | None,
        queue: FairQueue,
        replica_registry: ReplicaRegistry,
    ) -> None:
        self._queue = queue
        self._replica_registry = replica_registry
        self._settings = RemoteSettings() if remote is None else remote.settings
        self.throughput = Throughput()
        """Of all backends together."""
        self._local = Backend("local", local, self.throughput)
        self._remote = None if remote is None else Backend("remote", remote.replicas, self.throughput)
        self.all = (self._local,) if self._remote is None else (self._local, self._remote)
        self._failed: dict[str, Backend] = {}
        """Job ids to the backend that failed the job last."""
        self._unfit: dict[str, set[Backend]] = {}
        """Job ids to the backends that can never do the job."""

    def is_closed(self, backend: Backend) -> bool:
        """Tell whether the backend may have no job now, whichever it is."""
        if backend is self._local and self._replica_registry.is_local_empty:
            return True
        if backend.image_count > backend.running_count and self._is_full(backend):
            return True
        return self._remote is not None and backend.is_away

    def accepts(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Tell whether the backend may have the job now."""
        if self.is_closed(backend):
            return False
        if self._remote is None:
            return True
        if not self._is_allowed(backend, job):
            return False
        failed = self._failed.get(job.job_id)
        if failed is backend:
            return not self._has_alternative(backend, job)
        if backend is self._remote and self._settings.policy == "local-then-remote":
            return failed is not None or self._is_overflowing()
        return True

    def record_failure(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Note that the backend has failed the job; returns whether the other one takes it now."""
        self._failed[job.job_id] = backend
        return self._has_alternative(backend, job)

    def exclude(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Note that the backend can never do the job; returns whether the other one may try."""
        self._unfit.setdefault(job.job_id, set()).add(backend)
        return any(self._is_allowed(other, job) for other in self.all)

    def forget(self, job_id: str) -> None:
        """Drop what is known of the job: it has ended."""
        self._failed.pop(job_id, None)
        self._unfit.pop(job_id, None)

    def _is_allowed(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        if backend in self._unfit.get(job.job_id, ()):
            return False
        if backend is self._remote:
            return job.parameters.allow_remote
        return self._settings.policy != "remote" or not job.parameters.allow_remote

    def _has_alternative(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        return any(
            self._is_allowed(other, job) and not other.is_away and not self._is_unreachable(other)
            for other in self.all
            if other is not backend
        )

    def _is_unreachable(self, backend: Backend) -> bool:
        if backend is self._local and self._replica_registry.is_local_empty:
            return True
        return backend.starved_seconds > self._settings.fallback_after_seconds

    def _is_full(self, backend: Backend) -> bool:
        """Tell whether its replicas have images enough, with one each to go on with. A slot is a job's, and
        jobs of several images in all of them would let the next customer wait behind them all. One job's
        are in one replica, and fill no other."""
        limits = [report.limit for report in self._replica_registry.all() if report.backend == backend.name]
        return bool(limits) and backend.count_images(max(limits) + 1) >= sum(limits) + len(limits)

    def _is_overflowing(self) -> bool:
        backlog = self._local.estimate_seconds(self._queue.image_count)
        return self._is_unreachable(self._local) or backlog > self._settings.overflow_after_seconds
