"""`avatarforge up`: how long until it takes photos, and until the first avatar can be had."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.report import Report, Table, spread
from benchmarks.service import ROOT, environment, wait_until_done

MOST_SECONDS = 600.0
_PHASE = re.compile(r"[│|]\s*(\D.*?)\s*[│|]\s*([\d.]+)\s*[│|]\s*([\d.]+)\s*[│|]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Seconds since the command was typed."""

    ready: float
    """Until `/readyz` said 200: photos are accepted."""
    model: float
    """Until a picture could be begun: the first avatar's end, less what making it took."""
    avatar: float
    """Until the avatar of a photo that was sent at once was DONE."""
    stopped: float
    """From Ctrl-C to the end of the process."""
    phases: list[tuple[str, float, float]]
    """Name, beginning, duration, as the command tells them."""


def run(options: Options) -> Report:
    starts = [_measured(options.folder / f"start-{number}") for number in range(options.repeat(5))]
    middle = sorted(starts, key=lambda start: start.ready)[len(starts) // 2]
    return Report(
        title="Start: avatarforge up",
        figures=[
            *spread("to /readyz 200", [start.ready for start in starts], "s", "≤ 30 s, aim at 15"),
            *spread("to a loaded model", [start.model for start in starts], "s"),
            *spread("to the first avatar, sent when ready", [start.avatar for start in starts], "s"),
            *spread("to stop after Ctrl-C", [start.stopped for start in starts], "s"),
        ],
        conditions={
            "command": "python -m avatarforge up --timings, embedded default, an empty data folder each time",
            "clock": "from before the process is made; /readyz is asked every 20 ms",
            "file cache": "warm from the second run on; the runs stand in their order in the table",
        },
        tables=[
            Table(
                title="Each run, seconds",
                columns=("run", "ready", "model", "avatar", "stopped"),
                rows=[
                    (number, start.ready, start.model, start.avatar, start.stopped)
                    for number, start in enumerate(starts, 1)
                ],
            ),
            Table(
                title="Where the time goes in the run of the median (phases overlap)",
                columns=("phase", "from s", "took s"),
                rows=middle.phases,
            ),
        ],
    )


def _measured(folder: Path) -> Start:
    folder.mkdir(parents=True)
    begun = time.perf_counter()
    with _command(folder) as (process, url):
        _wait_until_ready(url, process)
        ready = time.perf_counter() - begun
        photo = load.upload("/customers/first", SAMPLE_PORTRAIT.read_bytes(), "image/png")
        job = load.send(url, iter([photo]), 1).expect(202).replies[0].json()
        timings = wait_until_done(url, "first", str(job["jobId"]))["timings"]
        avatar = time.perf_counter() - begun
        assert isinstance(timings, dict)
        making = sum(timings[stage] for stage in ("encode", "steps", "decode", "upload"))
        asked_to_stop = time.perf_counter()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        stopped = time.perf_counter() - asked_to_stop
    phases = [(name, float(at), float(took)) for name, at, took in _PHASE.findall(_log(folder).read_text())]
    return Start(ready=ready, model=avatar - making, avatar=avatar, stopped=stopped, phases=phases)


@contextmanager
def _command(folder: Path) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """The command, typed now, and where it will listen."""
    variables = environment(folder) | {"COLUMNS": "120"}
    with (
        _log(folder).open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "avatarforge", "up", "--timings"],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield process, f"http://127.0.0.1:{variables['AVATARFORGE_HTTP_PORT']}"
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(
                f"avatarforge up ended with {process.returncode}; its log is in the work folder"
            )
        if _is_ready(url):
            return
        time.sleep(0.02)
    raise RuntimeError(f"/readyz did not say 200 within {MOST_SECONDS:g} s.")


def _is_ready(url: str) -> bool:
    try:
        return load.ask(url, load.get("/readyz")).status == 200
    except OSError:
        # Nobody listens yet, or who listens has nobody to pass it on to.
        return False


def _log(folder: Path) -> Path:
    return folder / "command.log"
