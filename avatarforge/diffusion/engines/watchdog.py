"""Notices a device that does not answer: its calls do not return, and raise nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

CHECK_INTERVAL_SECONDS: Final = 1.0
"""Seconds between two calls of `Watchdog.check`."""
STALL_STEPS: Final = 20
"""Silence of so many steps is a stall: decoding may take as long as some of them."""
UNMEASURED_TIMEOUT_SECONDS: Final = 600.0
"""Silence that is a stall while no step has been measured: on a CPU a large model's may take minutes."""
COMPILATION_TIMEOUT_SECONDS: Final = 1800.0
"""Silence that is a stall while a model is compiled."""


class Watchdog:
    """Tells that an engine which has work gives no sign of life.

    The engine works inside `expect_beats`, and calls `beat` after its calls of the device, from any thread.
    Silence is counted in checks, not in time: a process that was stopped for a minute has not been silent.
    """

    def __init__(self) -> None:
        self.is_compiling = False
        """The engine warms up a model that torch compiles."""
        self._tasks = self._beats = self._known_beats = self._silent_checks = 0

    @contextmanager
    def expect_beats(self) -> Iterator[None]:
        """Expect signs of life inside this context. Enter it in one thread only."""
        self.beat()
        self._tasks += 1
        try:
            yield
        finally:
            self._tasks -= 1

    def beat(self) -> None:
        """Give a sign of life."""
        # Two threads that beat at once may count as one: any change is a sign.
        self._beats += 1

    def check(self, timeout_seconds: float, step_seconds: float | None) -> float | None:
        """Return the seconds of silence if that is a stall, else `None`; call it every
        `CHECK_INTERVAL_SECONDS`.

        `timeout_seconds` is the least that counts as a stall, `step_seconds` the time of a step, once known.
        """
        if self._beats != self._known_beats or not self._tasks:
            self._known_beats, self._silent_checks = self._beats, 0
            return None
        self._silent_checks += 1
        silence = self._silent_checks * CHECK_INTERVAL_SECONDS
        least = UNMEASURED_TIMEOUT_SECONDS if step_seconds is None else STALL_STEPS * step_seconds
        if self.is_compiling:
            least = COMPILATION_TIMEOUT_SECONDS
        return silence if silence >= max(timeout_seconds, least) else None
