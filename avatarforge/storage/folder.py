"""Object storage in a folder: the embedded default."""

# ruff: noqa: PTH102, PTH105, PTH108, PTH110, PTH114, PTH120
# `put` names files by plain strings: path objects would take longer than the system's calls themselves.

import errno
import math
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from avatarforge.domain.errors import ObjectNotFound, StorageFull, StorageUnavailable
from avatarforge.storage.interface import StoredObject
from avatarforge.storage.keys import validate_key, validate_prefix

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
        self._root = str(folder.absolute())
        self._sweep()

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        """The media type is not kept: the key's extension says it."""
        path = f"{self._root}/{validate_key(key)}"
        incoming = f"{self._root}/{INCOMING}/{uuid4().hex}"
        try:
            _write(incoming, content)
            with translate_errors():
                _publish(incoming, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(incoming)
            raise

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with translate_errors(key):
            return path.read_bytes()

    def stream(self, key: str, chunk_size: int = _CHUNK, part: range | None = None) -> Generator[bytes]:
        path = self._path(key)
        with translate_errors(key):
            chunks = _chunks(path.open("rb", buffering=0), chunk_size, part)
        # Started here, so that the file is closed even if nobody takes a chunk.
        next(chunks)
        return chunks

    def delete(self, key: str) -> None:
        path = self._path(key)
        with translate_errors():
            try:
                path.unlink()
            except _NOT_THERE:
                return
            _sync(self._prune(path.parent))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        validate_prefix(prefix)
        parent, _, begin = prefix.rpartition("/")
        with translate_errors():
            yield from _walk(self.folder / parent, f"{parent}/" if parent else "", begin)

    def sign_url(self, key: str, expires_in: int) -> str | None:
        """`None`: a folder is reached through AvatarForge only."""
        return None

    def check(self) -> None:
        with translate_errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise StorageUnavailable(f"{self.folder} cannot be written")

    def _path(self, key: str) -> Path:
        return self.folder / validate_key(key)

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
        with translate_errors(), suppress(FileNotFoundError):
            for path in (self.folder / INCOMING).iterdir():
                # Another process may sweep, or publish, at the same time.
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()


@contextmanager
def translate_errors(key: str | None = None) -> Iterator[None]:
    """The system's errors as ours; with a `key`, what is absent is `ObjectNotFound`."""
    try:
        yield
    except OSError as error:
        if key is not None and isinstance(error, _NOT_THERE):
            raise ObjectNotFound(key) from error
        if error.errno in _NO_ROOM:
            raise StorageFull(str(error)) from error
        raise StorageUnavailable(str(error)) from error


def _write(path: str, content: BinaryIO) -> None:
    """A new file on the disk, for this user alone."""
    with translate_errors():
        descriptor = _open_new(path)
    try:
        # Reading stays outside of the translation: a source that fails is not the storage's fault.
        while chunk := content.read(_CHUNK):
            with translate_errors():
                _write_all(descriptor, chunk)
        with translate_errors():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_new(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        _make(os.path.dirname(path))
        return os.open(path, flags, 0o600)


def _write_all(descriptor: int, chunk: bytes) -> None:
    """The system takes what has room, which may be less than all."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _publish(incoming: str, path: str) -> None:
    """Give the file its key and make every folder entry on the way to it durable."""
    folder = known = os.path.dirname(path)
    while True:
        try:
            known = min(known, _make(folder), key=len)
            os.replace(incoming, path)
            break
        except FileNotFoundError:
            # A concurrent delete may have pruned a folder between two calls.
            if not os.path.exists(incoming):
                raise
    # From the object's folder up to the one that was there already. What others have made above that is
    # durable with ours: file systems that keep a journal, as all usual ones do, write it in order.
    _sync(folder)
    while folder != known:
        folder = os.path.dirname(folder)
        _sync(folder)


def _make(folder: str) -> str:
    """Make the folder and what is missing above it; returns the lowest that was there already."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if os.path.islink(folder) and not os.path.exists(folder):
            raise  # It leads nowhere, such as to a disk that is not mounted.
        return folder
    except FileNotFoundError:
        known = _make(os.path.dirname(folder))
        return min(known, _make(folder), key=len)
    return os.path.dirname(folder)


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


def _chunks(file: BinaryIO, size: int, part: range | None) -> Generator[bytes]:
    left: float = math.inf if part is None else len(part)
    with file:
        yield b""
        if part is not None:
            file.seek(part.start)
        while left > 0:
            with translate_errors():
                chunk = file.read(int(min(size, left)))
            if not chunk:
                return
            left -= len(chunk)
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
