"""How fast jobs come out, for estimates."""


class Pace:
    """Seconds between two finished jobs while there was always work, as an exponential average."""

    WEIGHT = 0.2
    """Share of the newest interval: the last ten or so jobs decide."""

    def __init__(self) -> None:
        self._busy_since: float | None = None
        self.interval: float | None = None
        """Seconds, `None` until the first job has finished."""

    def expected(self, at: float) -> float | None:
        """Seconds a job, of which the time since the last one has come out is the least."""
        silence = 0.0 if self._busy_since is None else at - self._busy_since
        return max(self.interval or 0.0, silence) or None

    def started(self, at: float) -> None:
        """A job began, at `at` seconds of any steady clock."""
        if self._busy_since is None:
            self._busy_since = at

    def finished(self, at: float, running: int) -> None:
        """A job came out and `running` others go on."""
        if self._busy_since is None:
            return
        interval = at - self._busy_since
        self.interval = (
            interval if self.interval is None else self.interval + self.WEIGHT * (interval - self.interval)
        )
        self._busy_since = at if running else None

    def stopped(self, running: int) -> None:
        """A job ended without an avatar: it says nothing about the pace."""
        if not running:
            self._busy_since = None
