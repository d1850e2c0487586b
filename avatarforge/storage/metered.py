"""Storage that counts and times what it is asked."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from typing import BinaryIO

from avatarforge.domain.errors import ObjectNotFound, StorageUnavailable
from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry

_ERROR_OUTCOMES = {ObjectNotFound: "absent", StorageUnavailable: "unavailable"}


_PROBE = "health/probe"
"""The key of an object that is stored and deleted to see whether that can be done."""


class MeteredStorage:
    """The same storage. Of what is read piece by piece (`stream`, `list`) the time to the first counts.

    `check` stores an object, and deletes it, unless the last one that came was stored.
    """

    def __init__(self, storage: ObjectStorage, registry: MetricsRegistry, component: str) -> None:
        """`component` says who asks."""
        self._storage = storage
        self._registry = registry
        self._component = component
        self._is_writable = False
        """Whether the last object was stored; before the first nobody knows."""

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        try:
            with self._meter("put"):
                self._storage.put(key, content, media_type)
        except StorageUnavailable:
            self._is_writable = False
            raise
        self._is_writable = True

    def get(self, key: str) -> bytes:
        with self._meter("get"):
            return self._storage.get(key)

    def stream(self, key: str, chunk_size: int = 256 * 1024, part: range | None = None) -> Generator[bytes]:
        with self._meter("stream"):
            return self._storage.stream(key, chunk_size, part)

    def delete(self, key: str) -> None:
        with self._meter("delete"):
            self._storage.delete(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._meter("list"):
            listed = self._storage.list(prefix)
            first = next(listed, None)
        if first is not None:
            yield first
            yield from listed

    def sign_url(self, key: str, expires_in: int) -> str | None:
        # Reckoned here: nobody is asked.
        return self._storage.sign_url(key, expires_in)

    def check(self) -> None:
        with self._meter("check"):
            self._storage.check()
            if not self._is_writable:
                self._storage.put(_PROBE, BytesIO(b"ok"), "text/plain")
                self._storage.delete(_PROBE)
                self._is_writable = True

    def _meter(self, operation: str) -> AbstractContextManager[None]:
        return self._registry.time_call(
            metrics.STORAGE_CALLS, self._component, operation, errors=_ERROR_OUTCOMES
        )
