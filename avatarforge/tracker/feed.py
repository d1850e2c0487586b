"""The feed: what ingress replicas are told, in batches, from the point that they name."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedCursor:
    """How far a subscriber has come. Asking with it is also acknowledging."""

    tracker: str = ""
    """Which start of the tracker `tick` belongs to; empty for a subscriber that knows nothing yet."""
    seq: int = 0
    tick: int = 0
    """Counts live news (progress, order), which have no `seq`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedBatch:
    """News since the cursor. `snapshot` comes first and holds all unfinished jobs."""

    cursor: FeedCursor
    snapshot: tuple[ProfilePhotoJob, ...] | None = None
    changes: tuple[LoggedChange, ...] = ()
    progress: Mapping[str, GenerationProgress] = field(default_factory=dict)
    order: tuple[str, ...] | None = None
    """Ids of the first waiting jobs, next one first, when it has changed."""
    seconds_per_job: float | None = None
    running: int = 0


LoadChanges = Callable[[int], Awaitable[Sequence[LoggedChange]]]
"""Reads the committed changes after a `seq` from the database."""


class Feed:
    """Keeps recent news and hands them out. One `read` of a replica serves all of its clients."""

    ORDER_INTERVAL = 0.25
    """Seconds between two reckonings of the order, at least."""

    def __init__(
        self,
        tracker: str,
        seq: int,
        *,
        recent: int,
        load_changes: LoadChanges,
        jobs: Callable[[], Sequence[ProfilePhotoJob]],
        order: Callable[[], tuple[str, ...]],
        figures: Callable[[], tuple[float | None, int]],
    ) -> None:
        self._tracker = tracker
        self._recent: deque[LoggedChange] = deque(maxlen=recent)
        self._complete_after = seq
        """Every change with a higher `seq` is in `_recent`."""
        self._seq = seq
        self._tick = 0
        self._load_changes = load_changes
        self._jobs = jobs
        self._order = order
        self._figures = figures
        self._progress: dict[str, tuple[int, GenerationProgress]] = {}
        self._ordered: tuple[str, ...] = ()
        self._ordered_tick = 0
        self._ordered_at = float("-inf")
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

    # --- what subscribers ask --------------------------------------------------------------------------

    async def read(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News after the cursor: at once if there are any, else the first within `wait` seconds."""
        known = cursor.tracker == self._tracker
        if known and not self._has_news(cursor):
            await self._until_news(wait)
        changes = await self._changes_after(cursor.seq) if cursor.tracker else ()
        # No await from here on: the batch and its cursor belong together.
        snapshot = None if known else tuple(self._jobs())
        seconds_per_job, running = self._figures()
        order = self._current_order()
        tick = cursor.tick if known else 0
        self.answers += 1
        return FeedBatch(
            cursor=FeedCursor(
                tracker=self._tracker,
                seq=changes[-1].event.seq if changes else self._seq,
                tick=self._tick,
            ),
            snapshot=snapshot,
            changes=changes,
            progress={job_id: news for job_id, (at, news) in self._progress.items() if at > tick},
            order=order if self._ordered_tick > tick or not known else None,
            seconds_per_job=seconds_per_job,
            running=running,
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

    def _current_order(self) -> tuple[str, ...]:
        """The order, reckoned anew when it has changed and some time has passed."""
        now = asyncio.get_running_loop().time()
        if self._order_is_old and now - self._ordered_at >= self.ORDER_INTERVAL:
            self._ordered, self._ordered_at, self._order_is_old = self._order(), now, False
            self._tick += 1
            self._ordered_tick = self._tick
        return self._ordered

    def _forget(self, job_id: str) -> None:
        """Drop an erased job's earlier values, as the database does."""
        for place, entry in enumerate(self._recent):
            if entry.event.job_id == job_id:
                self._recent[place] = replace(entry, job=None)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
