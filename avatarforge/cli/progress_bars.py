"""Progress of many photos on a terminal; without a terminal, a line when a photo ends."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from avatarforge.cli.terminal import err
from avatarforge.client import ProfilePhotoJobStatus

MAX_LINES = 8
"""Up to so many photos have a line each; of more, only those in work have one, below a line for all."""


class ProgressBars:
    """A bar for each photo, by a key. Use it in a `with` block."""

    def __init__(self, photos: int) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24 if err.width >= 72 else 10),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=err,
            disable=not err.is_terminal,
        )
        self._shows_each = photos <= MAX_LINES
        self._tasks: dict[str, TaskID] = {}
        self._started_at: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._photos, self._finished = photos, 0
        self._total = self._progress.add_task(
            "all photos", total=photos, state=f"0 of {photos}", visible=not self._shows_each
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, key: str, photo: Path) -> None:
        self._started_at[key] = time.monotonic()
        name = photo.name if len(photo.name) <= 24 else f"{photo.name[:23]}…"
        self._names[key] = photo.name
        self._tasks[key] = self._progress.add_task(
            escape(name), total=1, state="upload", visible=self._shows_each
        )

    def update(self, key: str, job: ProfilePhotoJobStatus) -> None:
        task = self._tasks[key]
        steps = job.progress
        if steps is not None:
            state = f"step {steps.step}/{steps.total_steps}"
            self._progress.update(
                task, total=steps.total_steps, completed=steps.step, state=state, visible=self._has_room(task)
            )
        elif job.status == "PENDING":
            waits = "waits" if job.queue_position is None else f"number {job.queue_position} in the queue"
            self._progress.update(task, state=waits)
        else:
            self._progress.update(task, state=job.status.lower())

    def finish(self, key: str, *, has_failed: bool = False) -> None:
        task, state = self._tasks[key], "[red]failed[/]" if has_failed else "[green]done[/]"
        self._progress.update(task, total=1, completed=1, state=state, visible=self._shows_each)
        self._progress.stop_task(task)
        self._finished += 1
        self._progress.update(
            self._total, completed=self._finished, state=f"{self._finished} of {self._photos}"
        )
        if not err.is_terminal:
            seconds = time.monotonic() - self._started_at[key]
            err.print(f"{escape(self._names[key])}: {state} after {seconds:.1f} s", highlight=False)

    def _has_room(self, task: TaskID) -> bool:
        if self._shows_each or self._progress.tasks[task].visible:
            return True
        return sum(each.visible for each in self._progress.tasks) <= MAX_LINES
