"""A program that is started again whenever a file changes."""

import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

from watchfiles import PythonFilter, watch

STOP_SECONDS = 30.0
LOOK_MS = 500
"""How often the program is looked at while no file changes, in milliseconds."""


class Happened(Enum):
    """The hooks of a watcher of the program."""

    STARTED = auto()
    CHANGED = auto()
    """Files changed: it is stopped, and started again."""
    ENDED = auto()
    """It has ended by itself; the next change starts it again."""


class Reloaded:
    """Runs `command` until the caller goes away, again after every change of a file that matters."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folders: Sequence[Path]) -> None:
        self._command, self._environ, self._folders = list(command), dict(environ), folders
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, tell: Callable[[Happened, str], None]) -> None:
        """`tell` hears what happens, with the names of the files that changed or the exit code."""
        try:
            self._start(tell)
            for names in self._changes():
                if names:
                    tell(Happened.CHANGED, ", ".join(names))
                    self._stop()
                    self._start(tell)
                elif self._process is not None and (code := self._process.poll()) is not None:
                    self._process = None
                    tell(Happened.ENDED, str(code))
        finally:
            self._stop()

    def _changes(self) -> Iterator[list[str]]:
        """The names of files that changed together; an empty list now and then."""
        matters = PythonFilter(extra_extensions=(".yaml", ".proto", ".html", ".css", ".js", ".svg"))
        for changes in watch(
            *self._folders, watch_filter=matters, yield_on_timeout=True, rust_timeout=LOOK_MS
        ):
            yield sorted({Path(path).name for _, path in changes})

    def _start(self, tell: Callable[[Happened, str], None]) -> None:
        self._process = subprocess.Popen(self._command, env=self._environ, start_new_session=True)
        tell(Happened.STARTED, "")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
