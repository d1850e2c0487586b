"""Where the time goes while AvatarForge starts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of the start. Phases overlap where they run side by side."""

    name: str
    began: float
    """Seconds after the process started."""
    took: float
    """Seconds."""


class Timings:
    """Phases in the order in which they began. Threads may measure at the same time."""

    def __init__(self) -> None:
        self._origin = time.perf_counter() - _process_age()
        self._phases: list[Phase] = []
        self._running: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside, whether it succeeds or not."""
        began = time.perf_counter()
        self._running.append(name)
        try:
            yield
        finally:
            self._running.remove(name)
            self._phases.append(
                Phase(name=name, began=began - self._origin, took=time.perf_counter() - began)
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(sorted(self._phases, key=lambda phase: phase.began))

    @property
    def running(self) -> tuple[str, ...]:
        """The names of those that go on, in the same order."""
        return tuple(self._running)

    @property
    def total_seconds(self) -> float:
        """Seconds since the process started: what a person at the keyboard waited."""
        return time.perf_counter() - self._origin


class WaitingNotices:
    """Says what the start waits for whenever it has said nothing for some seconds and that is another thing.

    It watches from a thread of its own, since imports and Ray's start keep the main one busy.
    """

    SILENT_SECONDS = 3.0
    CHECK_INTERVAL_SECONDS = 0.1

    def __init__(self, timings: Timings, say: Callable[[str], None]) -> None:
        """`say` gets a sentence, in another thread."""
        self.detail = ""
        """What the running phase waits for, if that is known."""
        self._timings = timings
        self._say = say
        self._said = ""
        self._said_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting notices", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Say no more. May be called more than once."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.CHECK_INTERVAL_SECONDS):
            is_due = time.monotonic() - self._said_at >= self.SILENT_SECONDS
            if is_due and (sentence := self._describe()) not in ("", self._said):
                self._say(sentence)
                self._said, self._said_at = sentence, time.monotonic()

    def _describe(self) -> str:
        if self.detail:
            return f"Waiting: {self.detail}"
        running = self._timings.running
        return f"Still {', '.join(running)} …" if running else ""


def _process_age() -> float:
    """Seconds that this process has used the CPU so far: before the first phase it only loads modules.

    It is the portable stand-in for the wall clock since the start, which only Linux tells.
    """
    return time.process_time()
