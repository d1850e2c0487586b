"""The feed: updates for ingress replicas, in batches, from the point that they name."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Generic, TypeVar

from avatarforge.background import monotonic, wait_for_event
from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import ProcessingStatus
from avatarforge.tracker.availability import StartupGate
from avatarforge.tracker.eta import Forecast

T = TypeVar("T")


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class FeedCursor:
    """A subscriber's place in the feed. Asking with it is also acknowledging."""

    tracker: str = ""
    """The start of the tracker that `tick` belongs to; empty for a subscriber that knows nothing yet."""
    seq: int = 0
    tick: int = 0
    """Counts live updates (progress, forecasts, reports), which have no `seq`."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class FeedBatch:
    """Updates since the cursor. `snapshot` comes first and holds all unfinished jobs."""

    cursor: FeedCursor
    snapshot: tuple[ProfilePhotoJob, ...] | None = None
    changes: tuple[LoggedChange, ...] = ()
    progress: Mapping[str, GenerationProgress] = field(default_factory=dict)
    forecast: Forecast | None = None
    """The newest forecast, if it has been made since."""
    reports: tuple[ReplicaReport, ...] | None = None
    """All replicas' newest reports, if there are new ones."""
    outage: str | None = None
    """Why uploads cannot be accepted, and have not been for a while."""


LoadChanges = Callable[[int], Awaitable[Sequence[LoggedChange]]]
"""Reads the committed changes after a `seq` from the database, a page at a time."""


class Feed:
    """Keeps recent updates and hands them out. One `read` of an ingress replica serves all of its clients."""

    MIN_FORECAST_INTERVAL_SECONDS = 0.25
    MAX_FORECAST_AGE_SECONDS = 1.0
    """Seconds after which a forecast is made anew though no job has changed: those that run go on."""
    MAX_FORECAST_SHARE = 0.05
    """Share of the tracker's time that forecasts may take: those of a very long queue are made less often."""
    MIN_REPORTS_INTERVAL_SECONDS = 1.0
    """Seconds between two answers with the replicas' reports."""

    def __init__(
        self,
        gate: StartupGate,
        max_recent: int,
        load_changes: LoadChanges,
        jobs: Callable[[], Sequence[ProfilePhotoJob]],
        forecast: Callable[[], Forecast],
        reports: Callable[[], tuple[ReplicaReport, ...]],
    ) -> None:
        """Subscribers wait for the gate. `max_recent` changes are kept in memory."""
        self._gate = gate
        self._tracker = ""
        self._recent: deque[LoggedChange] = deque(maxlen=max_recent)
        self._complete_after = 0
        """Every change with a higher `seq` is in `_recent`."""
        self._seq = 0
        self._tick = 0
        self._load_changes = load_changes
        self._jobs = jobs
        self._forecast = _Cached(forecast, self.MAX_FORECAST_SHARE)
        self._reports = _Cached(reports, self.MAX_FORECAST_SHARE)
        self._progress: dict[str, tuple[int, GenerationProgress]] = {}
        self._has_new_order = True
        self._has_updates: asyncio.Event = asyncio.Event()
        self.reads = 0
        """How often a subscriber was answered: it grows with their number, not with that of clients."""

    def start_after(self, tracker: str, seq: int) -> None:
        """Begin with the log's last `seq`. `tracker` names this start of the tracker."""
        self._tracker, self._seq, self._complete_after = tracker, seq, seq

    # --- updates from the tracker ---------------------------------------------------------------------

    def on_change(self, change: JobChange) -> None:
        """Take in a committed change; its `seq` is higher than all before."""
        if len(self._recent) == self._recent.maxlen:
            self._complete_after = self._recent[0].event.seq
        self._recent.append(change.to_logged_change())
        self._seq = change.event.seq
        if change.is_erasure:
            self._forget(change.event.job_id)
        if change.job.status is not ProcessingStatus.PROCESSING or change.is_erasure:
            self._progress.pop(change.event.job_id, None)
        self._has_new_order = True
        self._wake()

    def on_progress(self, job_id: str, progress: GenerationProgress) -> None:
        """Take in a step of a running job: live only, never stored."""
        self._tick += 1
        self._progress[job_id] = (self._tick, progress)
        self._wake()

    # --- subscribers ----------------------------------------------------------------------------------

    async def read(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """Return the updates after the cursor: at once if there are any, else the first in `wait` seconds.

        Raises `Unavailable` while the tracker is starting.
        """
        await self._gate.wait_in_time()
        known = cursor.tracker == self._tracker
        if known and not self._is_ahead_of(cursor):
            await wait_for_event(self._has_updates, wait)
        changes = await self._load_after(cursor.seq) if cursor.tracker else ()
        # No await from here on: the batch and its cursor belong together.
        snapshot = None if known else tuple(self._jobs())
        self._refresh()
        tick = cursor.tick if known else 0
        # What was read from the database may be ahead of the changes that came in here: never back.
        seq = changes[-1].event.seq if changes else max(self._seq, cursor.seq)
        self.reads += 1
        return FeedBatch(
            cursor=FeedCursor(tracker=self._tracker, seq=seq, tick=self._tick),
            snapshot=snapshot,
            changes=changes,
            progress={job_id: progress for job_id, (at, progress) in self._progress.items() if at > tick},
            forecast=self._forecast.value_after(tick, known=known),
            reports=self._reports.value_after(tick, known=known),
            outage=self._gate.describe_outage(),
        )

    def _is_ahead_of(self, cursor: FeedCursor) -> bool:
        return self._seq > cursor.seq or self._tick > cursor.tick

    async def _load_after(self, seq: int) -> tuple[LoggedChange, ...]:
        if seq >= self._complete_after:
            return self._list_recent(seq)
        older = await self._load_changes(seq)
        reached = older[-1].event.seq if older else self._complete_after
        if reached < self._complete_after:
            # The database gives a page at a time: the subscriber asks on from this page's end.
            return tuple(older)
        return (*older, *self._list_recent(reached))

    def _list_recent(self, seq: int) -> tuple[LoggedChange, ...]:
        newer: list[LoggedChange] = []
        for change in reversed(self._recent):
            if change.event.seq <= seq:
                break
            newer.append(change)
        return tuple(reversed(newer))

    def _refresh(self) -> None:
        """Make forecast and reports anew where they are old."""
        now = monotonic()
        max_age = self.MAX_FORECAST_AGE_SECONDS
        interval = self.MIN_FORECAST_INTERVAL_SECONDS if self._has_new_order else max_age
        if self._forecast.refresh(now, interval, self._tick + 1):
            self._tick += 1
            self._has_new_order = False
        if self._reports.refresh(now, self.MIN_REPORTS_INTERVAL_SECONDS, self._tick + 1):
            self._tick += 1

    def _forget(self, job_id: str) -> None:
        """Drop an erased job's earlier values, as the database does."""
        for place, entry in enumerate(self._recent):
            if entry.event.job_id == job_id:
                self._recent[place] = replace(entry, job=None)

    def _wake(self) -> None:
        self._has_updates.set()
        self._has_updates = asyncio.Event()


class _Cached(Generic[T]):
    """A value that is made anew when it is old, and given to those who have not seen it."""

    def __init__(self, make: Callable[[], T], share: float) -> None:
        """Making it takes at most about this share of the time."""
        self._make = make
        self._share = share
        self._value: T | None = None
        self._tick = 0
        self._next_at = float("-inf")
        self._made_at = float("-inf")

    def refresh(self, now: float, interval: float, tick: int) -> bool:
        """Make it anew if `interval` seconds have passed; return whether it is another now, under `tick`."""
        if now < max(self._made_at + interval, self._next_at):
            return False
        begun = perf_counter()
        value = self._make()
        self._made_at, self._next_at = now, now + (perf_counter() - begun) / self._share
        if value == self._value:
            return False
        self._value, self._tick = value, tick
        return True

    def value_after(self, tick: int, *, known: bool) -> T | None:
        """Return the value for a subscriber that has seen all up to `tick`, or does not know anything."""
        return self._value if self._tick > tick or not known else None
