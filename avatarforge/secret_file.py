"""Secrets in files that are read again when they change, so that they are rotated without a restart."""

import threading
from pathlib import Path

import structlog

from avatarforge.settings import SettingsError

log = structlog.get_logger(__name__)


class SecretFile:
    """The lines of a file, without those that are empty. Any thread may read them.

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
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return version, tuple(line.strip() for line in lines if line.strip())

    def _find_version(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
