"""A circuit breaker: it rejects requests after failures in a row, and tries again with one after a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from time import monotonic

import structlog

from avatarforge.domain.errors import RemoteFailed, RemoteUnavailable

log = structlog.get_logger(__name__)


class Circuit(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    """All requests pass."""
    OPEN = "open"
    """None passes."""
    HALF_OPEN = "half-open"
    """One passes; its result decides."""


class CircuitBreaker:
    """Opens after `threshold` failures in a row, and lets one request try again after `reset_seconds`.

    Not thread-safe.
    """

    TRIAL_RETRY_SECONDS = 1.0
    """How long other requests wait while one tries."""

    def __init__(self, threshold: int, reset_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._threshold = threshold
        self._reset_seconds = reset_seconds
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
    def guard(self) -> Iterator[None]:
        """Run one request inside. Raises `RemoteUnavailable` if none may pass now.

        `RemoteUnavailable` and `RemoteFailed` from within count as failures; any other end of the request,
        except its cancelling, as a success.
        """
        trial = self._admit()
        self._trying = self._trying or trial
        try:
            yield
        except (RemoteUnavailable, RemoteFailed) as error:
            self._record_failure()
            if isinstance(error, RemoteUnavailable) and self._opened_at is not None:
                raise RemoteUnavailable(error.reason, max(self._seconds_left, error.away_seconds)) from error
            raise
        except Exception:
            self._record_success()
            raise
        else:
            self._record_success()
        finally:
            if trial:
                self._trying = False

    @property
    def _seconds_left(self) -> float:
        return 0.0 if self._opened_at is None else self._opened_at + self._reset_seconds - self._clock()

    def _admit(self) -> bool:
        """Admit a request; return whether it is a trial."""
        match self.circuit:
            case Circuit.OPEN:
                raise RemoteUnavailable("it failed before and is left alone", self._seconds_left)
            case Circuit.HALF_OPEN if self._trying:
                raise RemoteUnavailable("it failed before and is being tried again", self.TRIAL_RETRY_SECONDS)
            case circuit:
                return circuit is Circuit.HALF_OPEN

    def _record_failure(self) -> None:
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._threshold:
            if self._opened_at is None:
                log.warning(
                    "remote server is left alone", failures=self._failures, seconds=self._reset_seconds
                )
            self._opened_at = self._clock()

    def _record_success(self) -> None:
        if self._opened_at is not None:
            log.info("remote server answers again")
        self._failures = 0
        self._opened_at = None
