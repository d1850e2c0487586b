"""Eight images of one photo as one job, beside eight jobs of one image, through the whole service."""

import time
from collections.abc import Sequence
from statistics import median

import psutil

from benchmarks import load
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.report import Figure, Report, Table
from benchmarks.service import Service, service

IMAGES = 8


def run(options: Options) -> Report:
    turns = []
    with service(options.folder / "service") as running:
        _measure(running, [1])
        for number in range(options.repeat(5)):
            sides = {"jobs": [1] * IMAGES, "variants": [IMAGES]}
            # Neither side is always the first.
            order = sorted(sides, reverse=bool(number % 2))
            taken = {side: _measure(running, sides[side]) for side in order}
            turns.append((taken["jobs"], taken["variants"]))
    return Report(
        title=f"{IMAGES} images of a photo as one job, beside {IMAGES} jobs",
        figures=[
            Figure(
                name=f"time, one job of {IMAGES} over {IMAGES} jobs",
                value=median(one[0] for _, one in turns) / median(many[0] for many, _ in turns),
                unit="",
                wanted="≤ 1.0",
            ),
            Figure(
                name="the service's CPU time, likewise",
                value=median(one[1] for _, one in turns) / median(many[1] for many, _ in turns),
                unit="",
            ),
        ],
        conditions={
            "photo": f"the sample portrait, {len(SAMPLE_PORTRAIT.read_bytes()) / 1000:.0f} kB; "
            "the model's own steps",
            "time": "from the first byte of the first upload to the answer that tells the last end; "
            f"{IMAGES} uploads over as many connections, or one",
        },
        tables=[
            Table(
                title="Turns",
                columns=("turn", f"{IMAGES} jobs, s", "one job, s", "CPU s", "CPU s, one job"),
                rows=[(turn, many[0], one[0], many[1], one[1]) for turn, (many, one) in enumerate(turns, 1)],
            )
        ],
    )


def _measure(running: Service, variants: Sequence[int]) -> tuple[float, float]:
    """Upload a job for each number of images; return the seconds until all are done, and of the CPU."""
    photo, cpu_before, begun = SAMPLE_PORTRAIT.read_bytes(), _cpu_seconds(running), time.perf_counter()
    uploads = [
        load.upload("/customers/ana", photo, "image/png", {"seed": seed, "variants": images})
        for seed, images in enumerate(variants)
    ]
    replies = load.send(running.url, iter(uploads), len(uploads)).expect(202).replies
    for reply in replies:
        path = f"/customers/ana/photos/{reply.json()['jobId']}/status?waitSeconds=25"
        while not (told := load.ask(running.url, load.get(path)).json())["isTerminal"]:
            pass
        if told["status"] != "DONE":
            raise RuntimeError(f"A job did not succeed: {told}")
    return time.perf_counter() - begun, _cpu_seconds(running) - cpu_before


def _cpu_seconds(running: Service) -> float:
    """The CPU time of all processes of ours; Ray's own are left out."""
    times = (
        process.cpu_times()
        for process in psutil.Process(running.pid).children(recursive=True)
        if (command := process.cmdline()) and command[0].startswith("ray::")
    )
    return sum(taken.user + taken.system for taken in times)
