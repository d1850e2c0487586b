"""The feed: what ingress replicas are told, in batches, from the point that they name."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Generic, TypeVar

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import ProcessingStatus
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.estimates import Forecast

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedCursor:
    """How far a subscriber has come. Asking with it is also acknowledging."""

    tracker: str = ""
    """Which start of the tracker `tick` belongs to; empty for a subscriber that knows nothing yet."""
    seq: int = 0
    tick: int = 0
    """Counts live news (progress, forecasts, reports), which have no `seq`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedBatch:
    """News since the cursor. `snapshot` comes first and holds all unfinished jobs."""

    cursor: FeedCursor
    snapshot: tuple[ProfilePhotoJob, ...] | None = None
    changes: tuple[LoggedChange, ...] = ()
    progress: Mapping[str, GenerationProgress] = field(default_factory=dict)
    forecast: Forecast | None = None
    """The line and when jobs are expected to be done, when it has been reckoned anew."""
    reports: tuple[ReplicaReport, ...] | None = None
    """All replicas' newest reports, when there are new ones."""


LoadChanges = Callable[[int], Awaitable[Sequence[LoggedChange]]]
"""Reads the committed changes after a `seq` from the database."""


class Feed:
    """Keeps recent news and hands them out. One `read` of a replica serves all of its clients."""

    FORECAST_INTERVAL = 0.25
    """Seconds between two forecasts, at least."""
    FORECAST_AGE = 1.0
    """Seconds after which a forecast is made anew though no job has changed: those that run go on."""
    FORECAST_SHARE = 0.05
    """Of the tracker's time that forecasts may take: with a very long line they are made less often."""
    REPORTS_INTERVAL = 1.0
    """Seconds between two answers that tell the replicas' reports, at least."""

    def __init__(
        self,
        tracker: str,
        seq: int,
        *,
        recent: int,
        load_changes: LoadChanges,
        jobs: Callable[[], Sequence[ProfilePhotoJob]],
        forecast: Callable[[], Forecast],
        reports: Callable[[], tuple[ReplicaReport, ...]],
    ) -> None:
        self._tracker = tracker
        self._recent: deque[LoggedChange] = deque(maxlen=recent)
        self._complete_after = seq
        """Every change with a higher `seq` is in `_recent`."""
        self._seq = seq
        self._tick = 0
        self._load_changes = load_changes
        self._jobs = jobs
        self._forecast = _Aged(forecast, self.FORECAST_SHARE)
        self._reports = _Aged(reports, self.FORECAST_SHARE)
        self._progress: dict[str, tuple[int, GenerationProgress]] = {}
        self._order_is_old = True
        self._news: asyncio.Event = asyncio.Event()
        self.answers = 0
        """How often a subscriber was answered: it grows with their number, not with that of clients."""

    # --- what the tracker tells ----------------------------------------------------------------------

    def changed(self, change: JobChange) -> None:
        """A committed change; its `seq` is higher than all before."""
        if len(self._recent) == self._recent.maxlen:
            self._complete_after = self._recent[0].event.seq
        self._recent.append(change.logged())
        self._seq = change.event.seq
        if change.is_erasure:
            self._forget(change.event.job_id)
        if change.job.status is not ProcessingStatus.PROCESSING or change.is_erasure:
            self._progress.pop(change.event.job_id, None)
        self._order_is_old = True
        self._wake()

    def progressed(self, job_id: str, progress: GenerationProgress) -> None:
        """A step of a running job: live only, never stored."""
        self._tick += 1
        self._progress[job_id] = (self._tick, progress)
        self._wake()

    def progress_of(self, job_id: str) -> GenerationProgress | None:
        """The last step of a running job that was told."""
        told = self._progress.get(job_id)
        return None if told is None else told[1]

    # --- what subscribers ask --------------------------------------------------------------------------

    async def read(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News after the cursor: at once if there are any, else the first within `wait` seconds."""
        known = cursor.tracker == self._tracker
        if known and not self._has_news(cursor):
            await self._until_news(wait)
        changes = await self._changes_after(cursor.seq) if cursor.tracker else ()
        # No await from here on: the batch and its cursor belong together.
        snapshot = None if known else tuple(self._jobs())
        self._reckon()
        tick = cursor.tick if known else 0
        # What was read from the database may be ahead of what was told here: never back.
        seq = changes[-1].event.seq if changes else max(self._seq, cursor.seq)
        self.answers += 1
        return FeedBatch(
            cursor=FeedCursor(
                tracker=self._tracker,
                seq=seq,
                tick=self._tick,
            ),
            snapshot=snapshot,
            changes=changes,
            progress={job_id: news for job_id, (at, news) in self._progress.items() if at > tick},
            forecast=self._forecast.told_after(tick, known=known),
            reports=self._reports.told_after(tick, known=known),
        )

    def _has_news(self, cursor: FeedCursor) -> bool:
        return self._seq > cursor.seq or self._tick > cursor.tick

    async def _until_news(self, wait: float) -> None:
        news = self._news
        try:
            async with asyncio.timeout(wait):
                await news.wait()
        except TimeoutError:
            return

    async def _changes_after(self, seq: int) -> tuple[LoggedChange, ...]:
        if seq >= self._complete_after:
            return self._recent_after(seq)
        older = await self._load_changes(seq)
        reached = older[-1].event.seq if older else self._complete_after
        if reached < self._complete_after:
            # The database gives a page at a time: the subscriber asks on from this page's end.
            return tuple(older)
        return (*older, *self._recent_after(reached))

    def _recent_after(self, seq: int) -> tuple[LoggedChange, ...]:
        newer: list[LoggedChange] = []
        for change in reversed(self._recent):
            if change.event.seq <= seq:
                break
            newer.append(change)
        return tuple(reversed(newer))

    def _reckon(self) -> None:
        """Make forecast and reports anew where they are old."""
        now = steady()
        interval = self.FORECAST_INTERVAL if self._order_is_old else self.FORECAST_AGE
        if self._forecast.renewed(now, interval, self._tick + 1):
            self._tick += 1
            self._order_is_old = False
        if self._reports.renewed(now, self.REPORTS_INTERVAL, self._tick + 1):
            self._tick += 1

    def _forget(self, job_id: str) -> None:
        """Drop an erased job's earlier values, as the database does."""
        for place, entry in enumerate(self._recent):
            if entry.event.job_id == job_id:
                self._recent[place] = replace(entry, job=None)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class _Aged(Generic[T]):
    """A value that is reckoned anew when it is old, and told to those who have not seen it."""

    def __init__(self, make: Callable[[], T], share: float) -> None:
        """Making it takes at most about this share of the time."""
        self._make = make
        self._share = share
        self._value: T | None = None
        self._tick = 0
        self._next_at = float("-inf")
        self._made_at = float("-inf")

    def renewed(self, now: float, interval: float, tick: int) -> bool:
        """Reckon it anew if `interval` seconds have passed; whether it has become another, under `tick`."""
        if now < max(self._made_at + interval, self._next_at):
            return False
        begun = perf_counter()
        value = self._make()
        self._made_at, self._next_at = now, now + (perf_counter() - begun) / self._share
        if value == self._value:
            return False
        self._value, self._tick = value, tick
        return True

    def told_after(self, tick: int, *, known: bool) -> T | None:
        """The value, for a subscriber that has seen all up to `tick`, or does not know anything."""
        return self._value if self._tick > tick or not known else None
