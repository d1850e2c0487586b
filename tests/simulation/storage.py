"""Object storage that is slow, refuses, is away for a while, and sometimes does a thing and denies it."""

from collections.abc import Callable, Iterator
from datetime import datetime
from random import Random
from typing import BinaryIO

from avatarforge.domain.errors import ObjectNotFound, StorageUnavailable
from avatarforge.storage.interface import StoredObject
from tests.simulation.loop import pause
from tests.simulation.trace import Trace
from tests.simulation.weather import Weather


class SimulatedStorage:
    """Objects are nothing but their keys. Calls block the simulated thread that makes them."""

    def __init__(self, weather: Weather, chance: Random, trace: Trace, now: Callable[[], datetime]) -> None:
        """`now` is the storage's own clock."""
        self._weather = weather
        self._chance = chance
        self._trace = trace
        self._now = now
        self.objects: dict[str, datetime] = {}
        """Keys, and when each was stored."""
        self.undeleted: set[str] = set()
        """Keys whose deletion was asked for and has not been done: it is under way, or was refused."""
        self.is_down = False
        self.is_calm = False

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        self._call("put", key, lambda: self.store(key))

    def store(self, key: str) -> None:
        """Without a network between."""
        self.objects[key] = self._now()

    def get(self, key: str) -> bytes:
        self._call("get", key, None)
        if key not in self.objects:
            raise ObjectNotFound(key)
        return b"photo"

    def stream(self, key: str, chunk_size: int = 256 * 1024, part: range | None = None) -> Iterator[bytes]:
        return iter([self.get(key) if part is None else self.get(key)[part.start : part.stop]])

    def delete(self, key: str) -> None:
        self.undeleted.add(key)
        self._call("delete", key, lambda: self._remove(key))

    def _remove(self, key: str) -> None:
        self.objects.pop(key, None)
        self.undeleted.discard(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._call("list", prefix, None)
        found = sorted(key for key in self.objects if key.startswith(prefix))
        return iter([StoredObject(key=key, size=5, modified_at=self.objects[key]) for key in found])

    def sign_url(self, key: str, expires_in: int) -> str | None:
        return None

    def check(self) -> None:
        self._call("check", "", None)

    @property
    def answers(self) -> bool:
        """Whether the next call works. For replicas, whose own retries are not simulated."""
        return not self.is_down and (self.is_calm or self._chance.random() >= self._weather.bad_storage)

    def _call(self, name: str, key: str, work: Callable[[], object] | None) -> None:
        pause(self._chance.uniform(0.0005, 0.01))
        works = self.answers
        if work is not None and (works or (not self.is_down and self._chance.random() < 0.5)):
            work()
            self._trace.note("storage", f"{name} {key}")
        if not works:
            self._trace.note("storage", f"{name} {key} is not answered")
            raise StorageUnavailable("it does not answer")
