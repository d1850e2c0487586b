"""What happened in a simulation, line by line."""

import hashlib
from collections.abc import Callable

from tests.simulation.loop import START


class Trace:
    """Every line has its time. Two runs of one seed have the same lines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.lines: list[str] = []

    def note(self, who: str, what: str) -> None:
        self.lines.append(f"{self._clock() - START:10.4f}  {who:<14} {what}")

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()
