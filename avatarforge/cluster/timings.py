"""Where the time goes while AvatarForge starts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside, whether it succeeds or not."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._phases.append(
                Phase(name=name, began=began - self._origin, took=time.perf_counter() - began)
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(sorted(self._phases, key=lambda phase: phase.began))

    @property
    def total_seconds(self) -> float:
        """Seconds since the process started: what a person at the keyboard waited."""
        return time.perf_counter() - self._origin


def _process_age() -> float:
    """Seconds that this process has used the CPU so far: before the first phase it only loads modules.

    It is the portable stand-in for the wall clock since the start, which only Linux tells.
    """
    return time.process_time()
