"""`make demo`, installed: from the command to the avatar's file, server start included."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report import Report, Table, spread
from benchmarks.service import ROOT, environment


def run(options: Options) -> Report:
    runs = [_measured(options.folder / f"demo-{number}") for number in range(options.repeat(5))]
    return Report(
        title="Demo: from a photo to its avatar's file",
        figures=[
            *spread("to avatar.png", [avatar for avatar, _ in runs], "s", "≤ 60 s, aim at 30"),
            *spread("to the command's end, all stopped", [end for _, end in runs], "s"),
        ],
        conditions={
            "command": "python -m avatarforge forge --demo: what `make demo` runs when all is installed",
            "clock": "from before the process is made to the file's last write",
        },
        tables=[
            Table(
                title="Each run, seconds",
                columns=("run", "avatar.png", "end"),
                rows=[(number, *times) for number, times in enumerate(runs, 1)],
            )
        ],
    )


def _measured(folder: Path) -> tuple[float, float]:
    """Seconds to the avatar's file and to the command's end."""
    folder.mkdir(parents=True)
    pictures = folder / "out"
    begun_at, begun = time.time(), time.perf_counter()
    with (folder / "command.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "avatarforge", "forge", "--demo", "--out", str(pictures)],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=900,
            check=False,
        )
    end = time.perf_counter() - begun
    avatars = list(pictures.glob("*-avatar.png"))
    if done.returncode != 0 or len(avatars) != 1:
        told = (folder / "command.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"The demo ended with {done.returncode} and {len(avatars)} avatars:\n{told}")
    return avatars[0].stat().st_mtime - begun_at, end
