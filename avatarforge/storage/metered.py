"""Storage that counts and times what it is asked."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from avatarforge.domain.errors import ObjectNotFound, StorageUnavailable
from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures


class MeteredStorage:
    """The same storage. Of what is read piece by piece (`stream`, `list`) the time to the first counts."""

    def __init__(self, storage: ObjectStorage, figures: Figures, component: str) -> None:
        """`component` says who asks."""
        self._storage = storage
        self._figures = figures
        self._component = component

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        with self._metered("put"):
            self._storage.put(key, content, media_type)

    def get(self, key: str) -> bytes:
        with self._metered("get"):
            return self._storage.get(key)

    def stream(self, key: str, chunk_size: int = 256 * 1024) -> Generator[bytes]:
        with self._metered("stream"):
            return self._storage.stream(key, chunk_size)

    def delete(self, key: str) -> None:
        with self._metered("delete"):
            self._storage.delete(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._metered("list"):
            listed = self._storage.list(prefix)
            first = next(listed, None)
        if first is not None:
            yield first
            yield from listed

    def signed_url(self, key: str, expires_in: int) -> str | None:
        # Reckoned here: nobody is asked.
        return self._storage.signed_url(key, expires_in)

    def check(self) -> None:
        with self._metered("check"):
            self._storage.check()

    @contextmanager
    def _metered(self, operation: str) -> Iterator[None]:
        begun, outcome = time.perf_counter(), "error"
        try:
            yield
            outcome = "ok"
        except ObjectNotFound:
            outcome = "absent"
            raise
        except StorageUnavailable:
            outcome = "unavailable"
            raise
        finally:
            seconds = time.perf_counter() - begun
            self._figures.observe(metrics.STORAGE_CALLS, seconds, self._component, operation, outcome)
