"""`data_dir/run`: what a running instance keeps on disk, and the lock that keeps a second one out."""

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from avatarforge.domain.errors import FormattedError

_LONGEST = 26
"""Longest path for a folder of sockets, in bytes. A socket's path has at most 107 on Linux and 103 on
macOS; HAProxy needs 77 below the folder (`/<56 digits>/admin.sock.<pid>.tmp`), Ray 63."""
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
"""What HAProxy's configuration takes without quotes: Ray writes the path there as it stands."""


class DataFolderInUse(FormattedError):
    """Another AvatarForge works in the data folder."""

    message = (
        "The data folder {data_dir} is in use by another AvatarForge (process {owner}). "
        "Stop that one, or give this one a folder of its own with AVATARFORGE_DATA_DIR or --data-dir."
    )
    data_dir: Path
    owner: str


class RunFolder:
    """The folder, emptied of what an earlier instance left, and a path to it that is short and plain enough.

    `path` is the folder itself or a link to it in the system's temporary folder. The lock goes with the
    process, however it ends; links that a killed process left are removed by the next start.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.resolve()
        self._folder = self._data_dir / "run"
        self.path = self._folder
        self._lock: int | None = None

    def open(self) -> None:
        """Raises `DataFolderInUse`, and `OSError` when the folder cannot be written."""
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._remove_leftovers()
        self._folder.mkdir(mode=0o700)
        self.path = self._short_path()

    def close(self) -> None:
        """Remove the link and give up the lock. Ray's logs stay for whoever wants to read them."""
        if self._lock is None:
            return
        if self.path != self._folder:
            self.path.unlink(missing_ok=True)
            self._link_record.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    @property
    def _link_record(self) -> Path:
        """Says where the link is, for the start after a crash."""
        return self._folder / "link"

    def _take_lock(self) -> int:
        # Beside the folder, not in it: a lock on a file that is being removed keeps nobody out.
        # Python's descriptors are not inherited, so no child keeps the lock after us.
        lock = os.open(self._data_dir / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise DataFolderInUse(self._data_dir, owner or "unknown") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _remove_leftovers(self) -> None:
        if self._link_record.is_file():
            link = Path(self._link_record.read_text(encoding="utf-8"))
            if link.is_symlink() and link.readlink() == self._folder:
                link.unlink()
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _short_path(self) -> Path:
        if _suits_sockets(self._folder):
            return self._folder
        link = _new_link(self._folder)
        self._link_record.write_text(str(link), encoding="utf-8")
        return link


def _suits_sockets(path: Path) -> bool:
    return len(os.fsencode(path)) <= _LONGEST and _PLAIN.fullmatch(str(path)) is not None


def _new_link(target: Path) -> Path:
    """A link to `target` under a fresh name, in the first folder whose path suits sockets."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):
        link = parent / f"forge-{secrets.token_hex(4)}"
        if _suits_sockets(link):
            link.symlink_to(target)
            return link
    raise AssertionError("/tmp suits sockets")
