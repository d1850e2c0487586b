"""Rate limits: a token bucket for each key."""

import math
from collections.abc import Callable

from avatarforge.domain.errors import RateLimited


class RateLimits:
    """The limits of one ingress replica: several let a key ask so much more often.

    A bucket holds `burst` requests and fills up by `rate` a second. Full ones are forgotten, so that there
    are never more than keys that asked of late.
    """

    SWEEP_THRESHOLD = 1024
    """Buckets at which full ones are removed."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """`rate` 0: any number."""
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """What is left, and as of when."""

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key_id: str) -> None:
        """Count a request. Raises `RateLimited` with the seconds until there may be another."""
        if self._rate == 0:
            return
        now = self._clock()
        left, at = self._buckets.get(key_id, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._rate)
        if left < 1:
            self._buckets[key_id] = (left, now)
            raise RateLimited(self._rate, max(1, math.ceil((1 - left) / self._rate)))
        if key_id not in self._buckets and len(self._buckets) >= self.SWEEP_THRESHOLD:
            self._sweep(now)
        self._buckets[key_id] = (left - 1, now)

    def _sweep(self, now: float) -> None:
        full = [
            key_id
            for key_id, (left, at) in self._buckets.items()
            if left + (now - at) * self._rate >= self._burst
        ]
        for key_id in full:
            del self._buckets[key_id]
