"""The readiness of a tracker: whether it has taken its shard over, and whether its database answers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from avatarforge.background import monotonic, wait_for_event
from avatarforge.domain.errors import DatabaseUnavailable, TrackerUnavailable, Unavailable

log = structlog.get_logger(__name__)


class DatabaseOutage:
    """An outage of a shard's database, as its writer meets it. All of the tracker's parts share one."""

    MAX_ANSWER_SECONDS = 4.0
    """Seconds after which nobody waits for a call under way any more: less than a submission waits, since one
    that comes a moment later waits for its turn first."""
    MAX_SILENT_SECONDS = 10.0
    """Seconds after which an outage is no longer taken for one that passes."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self.error: DatabaseUnavailable | None = None
        """Why nothing can be written at present; `None` while that may be tried."""
        self.idle_error: Unavailable | None = None
        """Why the shard is not this tracker's to write for at present; `None` while it is."""
        self._defect = 0
        self._is_settled = True
        self._calls: list[float] = []
        """When the writer's calls that are under way began, oldest first."""
        self._silent_since: float | None = None
        """When the database was first found to take nothing; `None` while it takes something."""

    def begin(self, error: DatabaseUnavailable, _retry_seconds: float = 0) -> None:
        """Note that changes could not be written: others wait until that is settled."""
        self.suspect(error)
        self.error = error

    def suspect(self, error: DatabaseUnavailable) -> None:
        """Note that something else could not be written. Changes may still be tried."""
        if self._is_settled:
            log.warning("database does not answer", shard=self._shard, reason=error.reason)
        self._is_settled = False
        if self._silent_since is None:
            self._silent_since = monotonic()
        if error.defect and error.defect != self._defect:
            log.error("database needs somebody's hand", shard=self._shard, reason=error.reason)
        self._defect = error.defect

    def end(self) -> None:
        """Note that the database has written something, or would have."""
        if not self._is_settled:
            log.info("database is back", shard=self._shard)
        self.error, self.idle_error, self._defect = None, None, 0
        self._is_settled, self._silent_since = True, None

    def stay_idle(self, error: Unavailable) -> None:
        """Note that the shard is not this tracker's to write for."""
        if self.idle_error is None:
            log.warning("tracker stays idle", shard=self._shard, reason=error.reason)
        self.idle_error = error

    def get_idle(self) -> bool:
        return self.idle_error is not None

    def suspend(self) -> None:
        """Let others try: it lies with what could not be written. The outage ends once that is settled."""
        self.error, self._silent_since = None, None

    def is_active(self) -> bool:
        return self.error is not None

    def has_ended(self) -> bool:
        return self._is_settled

    def get_up(self) -> bool:
        return self._silent_since is None

    def get_defect(self) -> int:
        """Return the number of the database's error that no waiting heals; 0 if there is none."""
        return self._defect

    def describe(self) -> str | None:
        """Return what has kept the database from being written for some seconds, in words that a stranger may
        read; `None` if nothing has."""
        if self._silent_since is None or monotonic() - self._silent_since < self.MAX_SILENT_SECONDS:
            return None
        if self._defect:
            return f"the database answers changes with its error {self._defect}, which no waiting heals"
        return f"the database has taken no change for {monotonic() - self._silent_since:.0f} s"

    @contextmanager
    def measure_call(self) -> Iterator[None]:
        """Note that the writer waits inside for the database: one that hangs gives no error for long."""
        began = monotonic()
        self._calls.append(began)
        try:
            yield
        finally:
            self._calls.remove(began)

    def check(self) -> None:
        """Raise `DatabaseUnavailable` during an outage, and what keeps the tracker idle."""
        if self.idle_error is not None:
            raise type(self.idle_error)(self.idle_error.reason)
        if self.error is not None:
            raise DatabaseUnavailable(self.error.reason)
        if self._calls and (waited := monotonic() - self._calls[0]) >= self.MAX_ANSWER_SECONDS:
            raise DatabaseUnavailable(f"no answer for {waited:.0f} seconds")


class StartupGate:
    """Closed at first; open for good once the tracker knows its jobs."""

    def __init__(self, timeout_seconds: float, outage: DatabaseOutage) -> None:
        self._timeout_seconds = timeout_seconds
        self._outage = outage
        self._is_open = asyncio.Event()

    def open(self) -> None:
        """Let everybody pass, from now on."""
        self._is_open.set()

    def describe_outage(self) -> str | None:
        """Return `DatabaseOutage.describe`."""
        return self._outage.describe()

    async def wait(self) -> None:
        """Return once the tracker is ready, however long it takes."""
        await self._is_open.wait()

    async def wait_in_time(self) -> None:
        """Return once the tracker is ready. Raises `Unavailable`, with the reason, when the time is over."""
        if not await wait_for_event(self._is_open, self._timeout_seconds):
            self._outage.check()
            raise TrackerUnavailable("it is still starting")
