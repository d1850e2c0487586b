"""A thread that keeps the newest counts at hand, so that nobody who needs them has to wait."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from avatarforge.actors import NAMESPACE, tracker_name
from avatarforge.autoscaling.counts import Counting, Counts, Told

log = structlog.get_logger(__name__)

AskAll = Callable[[], Sequence[Told]]
"""Answers of all shards' trackers, in order. May block for some seconds, and raise anything."""


class Gauge:
    """The newest counts. The thread starts with the first look, and ends with this object."""

    INTERVAL = 1.0
    """Seconds between two questions."""
    STALE = 30.0
    """Seconds after which counts tell nothing: a tracker that starts again is back by then."""

    def __init__(
        self, ask: AskAll, clock: Callable[[], float] = time.monotonic, *, interval: float = INTERVAL
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._interval = interval
        self._counting = Counting()
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
        if counts is None or self._clock() - counts.at > self.STALE:
            return None
        return counts

    def refresh(self) -> None:
        """Ask once, now. What goes wrong leaves the last counts, which grow stale."""
        try:
            self._counts = self._counting.of(self._ask(), self._clock())
        except Exception as error:
            # The edge of a question: the next one may be answered.
            if not self._told_of_silence:
                log.warning("no answer about the backlog", reason=str(error) or type(error).__name__)
            self._told_of_silence = True
        else:
            self._told_of_silence = False


def _refresh(gauge: "weakref.ref[Gauge]", stopped: threading.Event, interval: float) -> None:
    while (here := gauge()) is not None:
        here.refresh()
        del here
        if stopped.wait(interval):
            return


def asking_trackers(shards: int, seconds: float = 5.0) -> AskAll:
    """Asks the named actors; a tracker that does not answer within the time raises."""
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
