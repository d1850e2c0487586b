"""Places: how many of a kind are served at a time. Who finds none is refused, at once."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from avatarforge.domain.errors import AvatarForgeError, TooManyStreams, TooManyStreamsOfCustomer


class Places:
    """At most so many at a time."""

    def __init__(self, most: int, refusal: Callable[[int], AvatarForgeError]) -> None:
        """`refusal` makes the error for whoever finds all places taken, from their number."""
        self._most = most
        self._refusal = refusal
        self.taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place, for as long as the context is open. Raises the refusal."""
        if self.taken >= self._most:
            raise self._refusal(self._most)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class StreamPlaces:
    """Places for streams, some of them for each customer."""

    def __init__(self, most: int, most_of_customer: int) -> None:
        self._all = Places(most, TooManyStreams)
        self._most_of_customer = most_of_customer
        self._customers: Counter[str] = Counter()

    @contextmanager
    def one(self, customer_id: str) -> Iterator[None]:
        """A place, for as long as the context is open. Raises `TooManyStreams`, of the customer or in all."""
        if self._customers[customer_id] >= self._most_of_customer:
            raise TooManyStreamsOfCustomer(self._most_of_customer)
        with self._all.one():
            self._customers[customer_id] += 1
            try:
                yield
            finally:
                self._customers[customer_id] -= 1
                if not self._customers[customer_id]:
                    del self._customers[customer_id]
