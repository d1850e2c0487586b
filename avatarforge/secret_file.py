"""Secrets in files that are read again when they change, so that they are rotated without a restart."""

import threading
from pathlib import Path

import structlog

from avatarforge.settings import SettingsError

log = structlog.get_logger(__name__)


class SecretFile:
    """The lines of a file in UTF-8, without those that are blank. Any thread may read them.

    A line is a secret as it stands, with blanks at its ends; it ends with a line feed, or with a carriage
    return before it. A byte order mark at the beginning is passed over.

    A file that cannot be read any more, or is empty, leaves the lines as they were: it may be about to be
    replaced.
    """

    def __init__(self, path: Path, setting: str) -> None:
        """Read the file. Raises `SettingsError`, with the setting's name, if that fails or finds nothing."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._version, self._lines = self._load()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The setting {setting} names the file {str(path)!r}: {error}.") from error
        if not self._lines:
            raise SettingsError(f"The setting {setting} names the file {str(path)!r}, which is empty.")

    def read(self) -> tuple[str, ...]:
        """Return the lines as the file has them now."""
        with self._lock:
            try:
                if self._find_version() != self._version:
                    version, lines = self._load()
                    self._version, self._lines = version, lines or self._lines
            except (OSError, UnicodeDecodeError) as error:
                log.warning("secret cannot be read again", path=str(self._path), reason=str(error))
            return self._lines

    def _load(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        # In this order: a file that is replaced in between is read once more.
        version = self._find_version()
        # Not `splitlines`, nor text mode: either ends a line at characters that a password may have.
        lines = self._path.read_bytes().decode("utf-8-sig").split("\n")
        return version, tuple(line.removesuffix("\r") for line in lines if line.strip())

    def _find_version(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
