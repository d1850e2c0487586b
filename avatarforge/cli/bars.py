"""Progress of many photos on a terminal; without one, a line for each photo's end."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from avatarforge.cli.terminal import err
from avatarforge.client import ProfilePhotoJobStatus

MOST_LINES = 8
"""Photos that are shown one by one; of more, only those that are being worked on, and a line for all."""


class Bars:
    """A bar for each photo, by a key of its own. Use it in a `with` block."""

    def __init__(self, photos: int) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24 if err.width >= 72 else 10),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=err,
            disable=not err.is_terminal,
        )
        self._are_few = photos <= MOST_LINES
        self._lines: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._photos, self._ended = photos, 0
        self._all = self._progress.add_task(
            "all photos", total=photos, state=f"0 of {photos}", visible=not self._are_few
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, key: str, photo: Path) -> None:
        self._began[key] = time.monotonic()
        name = photo.name if len(photo.name) <= 24 else f"{photo.name[:23]}…"
        self._names[key] = photo.name
        self._lines[key] = self._progress.add_task(
            escape(name), total=1, state="upload", visible=self._are_few
        )

    def show(self, key: str, job: ProfilePhotoJobStatus) -> None:
        line = self._lines[key]
        steps = job.progress
        if steps is not None:
            state = f"step {steps.step}/{steps.total_steps}"
            self._progress.update(
                line, total=steps.total_steps, completed=steps.step, state=state, visible=self._has_room(line)
            )
        elif job.status == "PENDING":
            waits = "waits" if job.queue_position is None else f"number {job.queue_position} in the line"
            self._progress.update(line, state=waits)
        else:
            self._progress.update(line, state=job.status.lower())

    def done(self, key: str) -> None:
        self._end(key, "[green]done[/]")

    def failed(self, key: str) -> None:
        self._end(key, "[red]failed[/]")

    def _end(self, key: str, state: str) -> None:
        line = self._lines[key]
        self._progress.update(line, total=1, completed=1, state=state, visible=self._are_few)
        self._progress.stop_task(line)
        self._ended += 1
        self._progress.update(self._all, completed=self._ended, state=f"{self._ended} of {self._photos}")
        if not err.is_terminal:
            seconds = time.monotonic() - self._began[key]
            err.print(f"{escape(self._names[key])}: {state} after {seconds:.1f} s", highlight=False)

    def _has_room(self, line: TaskID) -> bool:
        if self._are_few or self._progress.tasks[line].visible:
            return True
        return sum(task.visible for task in self._progress.tasks) <= MOST_LINES
