"""The interface of object storage."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """An entry of a listing."""

    key: str
    size: int
    """Bytes."""
    modified_at: datetime


class ObjectStorage(Protocol):
    """Objects by key. Calls block: callers in an event loop use a thread.

    Keys are relative paths of `[A-Za-z0-9._~-]` segments joined by `/`. Every method raises
    `StorageUnavailable` when the storage does not answer and `StorageFull` when it has no room.
    """

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        """Store what is left to read in `content`. Durable and whole when it returns, else absent."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises `ObjectNotFound`."""

    def stream(self, key: str, chunk_size: int = 256 * 1024, part: range | None = None) -> Generator[bytes]:
        """The object in chunks, or these of its bytes; close it when it is not read to its end.

        Raises `ObjectNotFound` at the call, before the first chunk.
        """

    def delete(self, key: str) -> None:
        """Remove the object; an absent one is no error."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key begins with `prefix`, in key order."""

    def sign_url(self, key: str, expires_in: int) -> str | None:
        """A URL that lets anyone GET the object for `expires_in` seconds; `None` where there is none."""

    def check(self) -> None:
        """Raise `StorageUnavailable` unless the storage answers now."""
