"""Object storage in a folder: the embedded default."""

import errno
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from avatarforge.domain.errors import ObjectNotFound, StorageFull, StorageUnavailable
from avatarforge.storage.grammar import checked_key, checked_prefix
from avatarforge.storage.interface import StoredObject

INCOMING = "+incoming"
"""Where objects are written before they get their key. '+' is in no key, so no object can lie here."""

STALE_SECONDS = 3600
"""Silence after which a file in `INCOMING` is a crash's leftover, not another process's upload."""

_CHUNK = 256 * 1024
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderStorage:
    """`ObjectStorage` over a local folder: a key is a file's path below it.

    Any number of processes may share the folder. Opening sweeps what crashed writers left behind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sweep()

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        """The media type is not kept: the key's extension says it."""
        path = self._path(key)
        incoming = self.folder / INCOMING / uuid4().hex
        try:
            self._write(incoming, content)
            with _translated():
                self._publish(incoming, path)
        except BaseException:
            with suppress(OSError):
                incoming.unlink(missing_ok=True)
            raise

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _translated(key):
            return path.read_bytes()

    def stream(self, key: str, chunk_size: int = _CHUNK) -> Generator[bytes]:
        path = self._path(key)
        with _translated(key):
            chunks = _chunks(path.open("rb", buffering=0), chunk_size)
        # Started here, so that the file is closed even if nobody takes a chunk.
        next(chunks)
        return chunks

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _translated():
            try:
                path.unlink()
            except _NOT_THERE:
                return
            _sync(self._prune(path.parent))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        checked_prefix(prefix)
        parent, _, begin = prefix.rpartition("/")
        with _translated():
            yield from _walk(self.folder / parent, f"{parent}/" if parent else "", begin)

    def signed_url(self, key: str, expires_in: int) -> str | None:
        """`None`: a folder is reached through AvatarForge only."""
        return None

    def check(self) -> None:
        with _translated():
            self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise StorageUnavailable(f"{self.folder} cannot be written")

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)

    def _write(self, path: Path, content: BinaryIO) -> None:
        with _translated():
            try:
                file = path.open("xb", buffering=0)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("xb", buffering=0)
        with file:
            # Reading stays outside of the translation: a source that fails is not the storage's fault.
            while chunk := content.read(_CHUNK):
                with _translated():
                    _write_all(file, chunk)
            with _translated():
                os.fsync(file.fileno())

    def _publish(self, incoming: Path, path: Path) -> None:
        """Give the file its key and make every folder entry on the way to it durable."""
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                incoming.replace(path)
                break
            except (FileNotFoundError, FileExistsError):
                # A concurrent delete may have pruned the parent between two calls (`mkdir` itself makes
                # two: it finds the folder there, and then looks whether it is one).
                if not incoming.exists() or path.parent.is_file():
                    raise
        # Plain strings: path objects would take longer than the calls themselves.
        folder = str(path.parent)
        for _ in range(len(path.parts) - len(self.folder.parts)):
            # ext4 commits all of it with the first; the others then cost nothing.
            _sync(folder)
            folder = os.path.dirname(folder) or "."  # noqa: PTH120

    def _prune(self, folder: Path) -> Path:
        """Remove the folder and its parents as far as they are empty; the first that stays."""
        while folder != self.folder:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                return folder
            folder = folder.parent
        return folder

    def _sweep(self) -> None:
        oldest = time.time() - STALE_SECONDS
        with _translated(), suppress(FileNotFoundError):
            for path in (self.folder / INCOMING).iterdir():
                # Another process may sweep, or publish, at the same time.
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()


@contextmanager
def _translated(key: str | None = None) -> Iterator[None]:
    """The system's errors as ours; with a `key`, what is absent is `ObjectNotFound`."""
    try:
        yield
    except OSError as error:
        if key is not None and isinstance(error, _NOT_THERE):
            raise ObjectNotFound(key) from error
        if error.errno in _NO_ROOM:
            raise StorageFull(str(error)) from error
        raise StorageUnavailable(str(error)) from error


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    """An unbuffered file takes what has room, which may be less than all."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _sync(folder: str | Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        # Pruned by a concurrent delete, which makes its own removal durable.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: BinaryIO, size: int) -> Generator[bytes]:
    with file:
        yield b""
        while True:
            with _translated():
                chunk = file.read(size)
            if not chunk:
                return
            yield chunk


def _walk(folder: Path, prefix: str, begin: str = "") -> Iterator[StoredObject]:
    """Objects below the folder, in the order of their keys, whose first segment begins with `begin`."""
    try:
        with os.scandir(folder) as entries:
            # A folder sorts as the keys in it do: with the slash behind its name.
            found = {f"{entry.name}/" if _is_folder(entry) else entry.name: entry for entry in entries}
    except _NOT_THERE:
        return
    for name in sorted(found):
        if not name.startswith(begin) or name == f"{INCOMING}/":
            continue
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name)
            continue
        try:
            status = found[name].stat()
        except FileNotFoundError:
            # Deleted since the folder was read.
            continue
        modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
        yield StoredObject(key=prefix + name, size=status.st_size, modified_at=modified_at)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False)
