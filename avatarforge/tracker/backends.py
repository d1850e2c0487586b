"""The backends: who makes the pictures, and which jobs each of them may take now."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import RemoteSettings
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures
from avatarforge.tracker.clocks import Clock
from avatarforge.tracker.pace import Pace
from avatarforge.tracker.replicas import Replicas, Reservation


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """The replicas that ask a remote server, and when they are used."""

    replicas: Replicas
    settings: RemoteSettings


class Backend:
    """One source of slots, with what the dispatcher has seen of it."""

    def __init__(self, name: str, replicas: Replicas, clock: Clock) -> None:
        self.name = name
        self.news = asyncio.Event()
        """Set when a job has come that it may take, or that begins the line."""
        self.running = 0
        self.finished = 0
        """Generations that have made their avatar, since the tracker started."""
        self._replicas = replicas
        self._clock = clock
        self._pace = Pace()
        self._asking_since: float | None = None
        self._ended_at = clock()
        self._away_until = float("-inf")

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

    def watch(self, figures: Figures) -> None:
        """Let the figures tell how it stands."""
        figures.watch(metrics.ATTEMPTS_RUNNING, lambda: self.running, self.name)
        figures.watch(metrics.BACKEND_AVAILABLE, lambda: not self.is_away, self.name)
        figures.watch(metrics.BACKEND_WITHOUT_SLOT, lambda: self.seconds_without_slot, self.name)

    def started(self) -> None:
        """A generation begins."""
        self.running += 1
        self._pace.started(self._clock())

    def ended(self, *, finished: bool) -> None:
        """A generation came to its end, with an avatar if it `finished`."""
        self.running -= 1
        self._ended_at = self._clock()
        if finished:
            self.finished += 1
            self._pace.finished(self._ended_at, self.running)
        else:
            self._pace.stopped(self.running)

    def leave_alone(self, seconds: float) -> None:
        """Take nothing for so long: its server is away."""
        self._away_until = max(self._away_until, self._clock() + seconds)

    @property
    def is_away(self) -> bool:
        return self._clock() < self._away_until

    @property
    def seconds_without_slot(self) -> float:
        """How long it has been asked for a slot while it runs nothing; 0 while it runs something."""
        if self._asking_since is None or self.running:
            return 0.0
        return self._clock() - max(self._asking_since, self._ended_at)

    def seconds_for(self, waiting: int) -> float:
        """Expected seconds until it has done so many jobs beside those that it runs; 0 while unknown."""
        return (self._pace.expected(self._clock()) or 0.0) * (self.running + waiting)


class Backends:
    """Our own replicas and, where there is one, the remote server.

    A job that may not leave the house never goes to the remote one, whatever the policy. A job that one
    backend has failed goes to the other, if that one may have it and answers.
    """

    def __init__(
        self,
        local: Replicas,
        remote: Remote | None,
        waiting: Callable[[], int],
        clock: Clock,
        *,
        local_is_empty: Callable[[], bool] = lambda: False,
    ) -> None:
        """`waiting` tells how many jobs stand in line, `local_is_empty` whether no replica of our own has a
        model."""
        self._local_is_empty = local_is_empty
        self._settings = RemoteSettings() if remote is None else remote.settings
        self._waiting = waiting
        self._local = Backend("local", local, clock)
        self._remote = None if remote is None else Backend("remote", remote.replicas, clock)
        self._failed: dict[str, Backend] = {}
        """Job ids to the backend that failed the job last."""
        self._unfit: dict[str, set[Backend]] = {}
        """Job ids to the backends that can never do the job."""

    @property
    def all(self) -> tuple[Backend, ...]:
        return (self._local,) if self._remote is None else (self._local, self._remote)

    def is_closed(self, backend: Backend) -> bool:
        """Whether the backend may have no job now, whichever it is."""
        if backend is self._local and self._local_is_empty():
            return True
        return self._remote is not None and backend.is_away

    def takes(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Whether the backend may have the job now."""
        if self.is_closed(backend):
            return False
        if self._remote is None:
            return True
        if not self._may(backend, job):
            return False
        failed = self._failed.get(job.job_id)
        if failed is backend:
            return not self._has_alternative(backend, job)
        if backend is self._remote and self._settings.policy == "local-then-remote":
            return failed is not None or self._overflows()
        return True

    def failed(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Note that the backend has failed the job; returns whether the other one takes it now."""
        self._failed[job.job_id] = backend
        return self._has_alternative(backend, job)

    def cannot(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        """Note that the backend can never do the job; returns whether the other one may try."""
        self._unfit.setdefault(job.job_id, set()).add(backend)
        return any(self._may(other, job) for other in self.all)

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self._failed.pop(job_id, None)
        self._unfit.pop(job_id, None)

    def _may(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        if backend in self._unfit.get(job.job_id, ()):
            return False
        if backend is self._remote:
            return job.parameters.allow_remote
        return self._settings.policy != "remote" or not job.parameters.allow_remote

    def _has_alternative(self, backend: Backend, job: ProfilePhotoJob) -> bool:
        return any(
            self._may(other, job) and not other.is_away and not self._is_gone(other)
            for other in self.all
            if other is not backend
        )

    def _is_gone(self, backend: Backend) -> bool:
        if backend is self._local and self._local_is_empty():
            return True
        return backend.seconds_without_slot > self._settings.wait_seconds

    def _overflows(self) -> bool:
        backlog = self._local.seconds_for(self._waiting())
        return self._is_gone(self._local) or backlog > self._settings.backlog_seconds
