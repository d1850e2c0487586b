"""The circuit breaker: a server that fails is left alone for a while, then tried with one request."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from time import monotonic

import structlog

from avatarforge.domain.errors import RemoteFailed, RemoteUnavailable

log = structlog.get_logger(__name__)


class Circuit(StrEnum):
    """Whether requests get through."""

    CLOSED = "closed"
    """All do."""
    OPEN = "open"
    """None does."""
    HALF_OPEN = "half-open"
    """One does; its end decides."""


class CircuitBreaker:
    """Opens after so many failures in a row, and lets one request try again after so many seconds.

    Not for several threads.
    """

    TRIAL_PAUSE = 1.0
    """Seconds that others are told to wait while one request tries."""

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._most = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._trying = False

    @property
    def circuit(self) -> Circuit:
        if self._opened_at is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self._seconds_left > 0 else Circuit.HALF_OPEN

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around one request. Raises `RemoteUnavailable` when it may not go now.

        `RemoteUnavailable` and `RemoteFailed` from within count as failures; any other end of the request
        but its cancelling shows that the server answers.
        """
        trial = self._admitted()
        self._trying = self._trying or trial
        try:
            yield
        except (RemoteUnavailable, RemoteFailed) as error:
            self._failed()
            if isinstance(error, RemoteUnavailable) and self._opened_at is not None:
                raise RemoteUnavailable(error.reason, max(self._seconds_left, error.away_seconds)) from error
            raise
        except Exception:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if trial:
                self._trying = False

    @property
    def _seconds_left(self) -> float:
        return 0.0 if self._opened_at is None else self._opened_at + self._seconds - self._clock()

    def _admitted(self) -> bool:
        """Whether the request is a trial."""
        match self.circuit:
            case Circuit.OPEN:
                raise RemoteUnavailable("it failed before and is left alone", self._seconds_left)
            case Circuit.HALF_OPEN if self._trying:
                raise RemoteUnavailable("it failed before and is being tried again", self.TRIAL_PAUSE)
            case circuit:
                return circuit is Circuit.HALF_OPEN

    def _failed(self) -> None:
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._most:
            if self._opened_at is None:
                log.warning("remote server is left alone", failures=self._failures, seconds=self._seconds)
            self._opened_at = self._clock()

    def _answered(self) -> None:
        if self._opened_at is not None:
            log.info("remote server answers again")
        self._failures = 0
        self._opened_at = None
