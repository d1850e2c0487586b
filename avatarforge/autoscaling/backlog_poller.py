"""A thread that keeps the newest counts at hand, so that nobody who needs them has to wait."""

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from avatarforge.actors import NAMESPACE, tracker_name
from avatarforge.settings import ScalingSettings

log = structlog.get_logger(__name__)

Told = Mapping[str, Any]
"""An answer of `JobTracker.describe`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The answers of all trackers at one time, added up."""

    unfinished: int
    """Jobs that wait or run, wherever."""
    waiting: int
    """Images that wait for a replica."""
    running: int
    """Images that our own replicas are to make."""
    backlog_seconds: float | None
    """Seconds that one replica would need for them; `None` while a tracker with jobs cannot tell."""
    accepted: int
    """Images ever asked for, to the trackers' knowledge and ours; only its growth means something."""
    finished: int
    """Images that our own replicas have ever made; likewise."""
    targets: ScalingSettings
    at: float
    """Seconds of the steady clock that the policy uses."""


class BacklogAggregator:
    """Adds up the shards' answers, over the restarts of trackers, which begin to count anew."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}
        self._totals = {"accepted": 0, "localFinished": 0}

    def add(self, answers: Sequence[Told], at: float) -> Counts:
        """Return the counts of all shards' answers, in order. The first shard's targets hold.

        Raises `KeyError`, `TypeError`, `ValueError` and `IndexError` for answers that are not valid.
        """
        running = sum(int(told["localRunning"]) for told in answers)
        waiting = sum(int(told["waiting"]) for told in answers)
        targets = ScalingSettings.model_validate(answers[0]["scaling"])
        for name in self._totals:
            grown = [self._growth(shard, name, int(told[name])) for shard, told in enumerate(answers)]
            self._totals[name] += sum(grown)
        busy = [told["backlogSeconds"] for told in answers if told["waiting"] or told["localRunning"]]
        return Counts(
            unfinished=sum(int(told["unfinished"]) for told in answers),
            waiting=waiting,
            running=running,
            backlog_seconds=None if None in busy else float(sum(busy)),
            accepted=self._totals["accepted"],
            finished=self._totals["localFinished"],
            targets=targets,
            at=at,
        )

    def _growth(self, shard: int, name: str, count: int) -> int:
        before = self._last.get((shard, name), count)
        self._last[shard, name] = count
        return count - before if count >= before else count


AskAll = Callable[[], Sequence[Told]]
"""Answers of all shards' trackers, in order. May block for some seconds, and raise anything."""


class BacklogPoller:
    """The newest counts. The thread starts with the first look, and ends with this object."""

    INTERVAL_SECONDS = 1.0
    """Seconds between two questions."""
    MAX_AGE_SECONDS = 30.0
    """Seconds after which counts tell nothing: a tracker that starts again is back by then."""

    def __init__(
        self, ask: AskAll, clock: Callable[[], float] = time.monotonic, *, interval: float = INTERVAL_SECONDS
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._interval = interval
        self._aggregator = BacklogAggregator()
        self._counts: Counts | None = None
        self._told_of_silence = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        # Serve drops a policy without a word when its deployment changes.
        weakref.finalize(self, self._stopped.set)

    def newest(self) -> Counts | None:
        """The newest counts, `None` when there are none or they are stale. Returns at once."""
        if self._thread is None:
            arguments = (weakref.ref(self), self._stopped, self._interval)
            self._thread = threading.Thread(target=_refresh, args=arguments, name="backlog", daemon=True)
            self._thread.start()
        counts = self._counts
        if counts is None or self._clock() - counts.at > self.MAX_AGE_SECONDS:
            return None
        return counts

    def refresh(self) -> None:
        """Ask once, now. What goes wrong leaves the last counts, which grow stale."""
        try:
            self._counts = self._aggregator.add(self._ask(), self._clock())
        except Exception as error:
            # The edge of a question: the next one may be answered.
            if not self._told_of_silence:
                log.warning("no answer about the backlog", reason=str(error) or type(error).__name__)
            self._told_of_silence = True
        else:
            self._told_of_silence = False


def _refresh(poller: "weakref.ref[BacklogPoller]", stopped: threading.Event, interval: float) -> None:
    while (here := poller()) is not None:
        here.refresh()
        del here
        if stopped.wait(interval):
            return


def make_tracker_poll(shards: int, seconds: float = 5.0) -> AskAll:
    """Make a function that asks the named actors; a tracker that does not answer within the time raises."""
    actors: dict[int, Any] = {}

    def ask() -> Sequence[Told]:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("there is no Ray in this process")  # And asking would start one.
        for shard in range(shards):
            if shard not in actors:
                actors[shard] = ray.get_actor(tracker_name(shard), namespace=NAMESPACE)
        try:
            answers: list[Told] = ray.get(
                [actors[shard].describe.remote() for shard in range(shards)], timeout=seconds
            )
        except Exception:
            # A handle of an actor that was removed and made anew stays dead.
            actors.clear()
            raise
        return answers

    return ask
