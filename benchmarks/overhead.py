"""32 avatars from the service against the same 32 pictures from a plain loop over the same pipeline."""

import io
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from PIL import Image, ImageChops

from avatarforge.settings import DiffusionSettings, load_settings
from benchmarks import load
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.plain_loop import POLICIES, PlainLoop
from benchmarks.report import Figure, Report, Table
from benchmarks.service import service, wait_until_done

CUSTOMER = "bench"
TRIAL = range(1001, 1005)
"""Seeds of the pictures that warm up both sides."""


def run(options: Options) -> Report:
    seeds = range(1, 1 + options.size(32, 3))
    rounds = options.repeat(3)
    settings = load_settings(environ={}).diffusion
    with service(options.folder / "service") as running, ExitStack() as loops:
        _through_the_service(running.url, TRIAL)
        loop, trials = _fastest_loop(loops, settings, options.folder)
        turns = []
        for _ in range(rounds):
            in_loop = loop.run(seeds)
            in_service, jobs = _through_the_service(running.url, seeds)
            turns.append((in_loop, in_service, in_service / in_loop))
        apart = max(_difference(running.url, jobs[seed], loop.folder / f"{seed}.png") for seed in seeds)
    ratio = median(turn[1] for turn in turns) / median(turn[0] for turn in turns)
    return Report(
        title=f"Overhead: {len(seeds)} avatars through the service and in a plain loop",
        figures=[
            Figure(name="service / loop", value=ratio, unit="", wanted="≤ 1.05"),
            Figure(name="service, median", value=median(turn[1] for turn in turns), unit="s"),
            Figure(name="loop, median", value=median(turn[0] for turn in turns), unit="s"),
            Figure(name="largest difference of a pixel", value=float(apart), unit="of 255"),
        ],
        conditions={
            "service": f"{len(seeds)} uploads of the sample portrait with different seeds, sent at once; "
            "the clock stops when the last is DONE, its avatar being in storage: photo checked, stored and "
            "fetched, face found, square cut, PNG written and stored, moves committed to SQLite",
            "loop": "another process that calls the same diffusers pipeline for one seed after the other, "
            "the square cut beforehand and output_type='pil'; the clock covers these calls and nothing else",
            "OpenMP in the loop": f"{loop.policy}: the faster one on this machine now; seconds for "
            f"{len(TRIAL)} pictures: {', '.join(f'{name} {took:.1f}' for name, took in trials.items())}",
            "both": f"{loop.facts}; the cluster is up, and the other side idle, in both",
            "turns": f"{rounds}, loop first, after pictures to warm up; ratio of medians",
        },
        tables=[
            Table(
                title="Seconds by turn",
                columns=("turn", "loop", "service", "service / loop"),
                rows=[(number, *turn) for number, turn in enumerate(turns, 1)],
            )
        ],
    )


def _fastest_loop(
    loops: ExitStack, settings: DiffusionSettings, folder: Path
) -> tuple[PlainLoop, dict[str, float]]:
    """The loop in the fastest of OpenMP's ways to wait, and each way's seconds for the trial.

    Which one it is depends on who else uses the cores; a user would keep the better one.
    """
    candidates = {
        policy: PlainLoop(settings.model, settings.threads, policy, folder / f"loop-{policy}")
        for policy in POLICIES
    }
    for loop in candidates.values():
        loops.enter_context(loop)
        loop.run(TRIAL[:1])
    trials = {policy: loop.run(TRIAL) for policy, loop in candidates.items()}
    return candidates[min(trials, key=lambda policy: trials[policy])], trials


def _through_the_service(url: str, seeds: range) -> tuple[float, dict[int, str]]:
    """Seconds until all are done, and their jobs by seed."""
    photo = SAMPLE_PORTRAIT.read_bytes()
    uploads = [load.upload(f"/customers/{CUSTOMER}", photo, "image/png", {"seed": seed}) for seed in seeds]
    begun = time.perf_counter()
    accepted = load.send(url, iter(uploads), len(uploads)).expect(202)
    jobs = {int(job["seed"]): str(job["jobId"]) for job in (reply.json() for reply in accepted.replies)}
    for job_id in jobs.values():
        wait_until_done(url, CUSTOMER, job_id)
    return time.perf_counter() - begun, jobs


def _difference(url: str, job_id: str, from_loop: Path) -> int:
    """The largest difference of both pictures in a channel of a pixel. Batches round otherwise."""
    answer = load.ask(url, load.get(f"/customers/{CUSTOMER}/photos/{job_id}/generated"))
    if answer.status != 200:
        raise RuntimeError(f"A finished avatar was answered with {answer.status}: {answer.body[:500]!r}")
    ours, theirs = Image.open(io.BytesIO(answer.body)), Image.open(from_loop)
    if ours.size != theirs.size:
        raise RuntimeError(f"The pictures measure {ours.size} and {theirs.size}.")
    return max(most for _, most in ImageChops.difference(ours, theirs).getextrema())
