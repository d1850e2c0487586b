"""Idempotency keys of uploads that are under way."""

from collections.abc import Callable

from avatarforge.domain.errors import IdempotencyKeyInFlight


class KeysInFlight:
    """Which keys are being worked on. Kept in memory: the database refuses a key's second job anyway."""

    LIMIT = 5.0
    """Seconds after which a key is free again whose holder never said so: an ingress replica that died with
    the upload, whose client asks again with the key. An upload that takes longer loses nothing by it: the
    record refuses the second job of a key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], float] = {}
        """Until when, oldest first."""

    def hold(self, customer_id: str, key: str) -> None:
        """Raises `IdempotencyKeyInFlight` when somebody else holds it."""
        self._free_expired()
        if (customer_id, key) in self._held:
            raise IdempotencyKeyInFlight(key)
        self._held[customer_id, key] = self._clock() + self.LIMIT

    def free(self, customer_id: str, key: str) -> None:
        self._held.pop((customer_id, key), None)

    def _free_expired(self) -> None:
        now = self._clock()
        while self._held:
            oldest = next(iter(self._held))
            if self._held[oldest] > now:
                return
            del self._held[oldest]
