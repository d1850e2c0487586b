"""How right `etaSeconds` is: what jobs of a mixed load were told, beside what became true."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from benchmarks import load
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import Service, service

CUSTOMERS = 3
PAUSE = 0.5
"""Seconds between two looks at all jobs."""
LEAST = 1.0
"""Seconds before its end up to which what a job was told counts: less is told with one digit."""
STEPS = (4, 8, 13, 20, 25, 40)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Telling:
    """What a job was told once."""

    job_id: str
    status: str
    at: float
    eta: float


def run(options: Options) -> Report:
    jobs = options.size(150, 12)
    with service(options.folder / "service") as running:
        _work_off(running, list(_requests(min(jobs, 16), seed=1)), 0.0)
        tellings, ends = _work_off(running, list(_requests(jobs, seed=2)), options.size(20, 2))
    errors = {
        status: [
            _error(telling, ends)
            for telling in tellings
            if telling.status == status and _counts(telling, ends)
        ]
        for status in ("PENDING", "PROCESSING")
    }
    every = [error for several in errors.values() for error in several]
    return Report(
        title=f"ETA: {jobs} jobs of mixed lengths that come in bursts",
        figures=[
            Figure(
                name="relative error, median",
                value=100 * median(every),
                unit="% of the true time left",
                wanted="≤ 30",
            ),
            Figure(name="relative error, 90th percentile", value=100 * percentile(every, 0.9), unit="%"),
            Figure(name="of waiting jobs, median", value=100 * median(errors["PENDING"]), unit="%"),
            Figure(name="of running jobs, median", value=100 * median(errors["PROCESSING"]), unit="%"),
        ],
        conditions={
            "load": f"steps {STEPS}, at random, of {CUSTOMERS} customers, in "
            "bursts over the first part of the time; 16 jobs before them, that are not counted",
            "told": f"all unfinished jobs were asked every {PAUSE:g} s",
            "counted": f"{len(every)} answers to jobs that were done more than {LEAST:g} s later; the error "
            "is the difference between what was told and what became true, over what became true",
        },
        tables=[_by_time_left(tellings, ends)],
    )


def _requests(jobs: int, seed: int) -> Iterator[bytes]:
    randomness, photo = random.Random(seed), noisy_jpeg(side=400)
    for number in range(jobs):
        fields = {"steps": randomness.choice(STEPS)}
        yield load.upload(f"/customers/customer-{number % CUSTOMERS}", photo, "image/jpeg", fields)


def _work_off(
    running: Service, requests: Sequence[bytes], seconds: float
) -> tuple[list[_Telling], dict[str, float]]:
    """Send the requests in bursts over so many seconds, and look at the jobs until all are done: what they
    were told, and when each ended."""
    randomness, left = random.Random(3), list(requests)
    tellings: list[_Telling] = []
    ends: dict[str, float] = {}
    accepted: set[str] = set()
    begun = time.time()
    while left or accepted - ends.keys():
        due = 1.0 if seconds == 0 else (time.time() - begun) / seconds
        wanted = len(left) - round(len(requests) * max(0.0, 1 - due))
        if left and (wanted > 0 and (randomness.random() < 0.3 or due >= 1)):
            burst, left = left[:wanted], left[wanted:]
            replies = load.send(running.url, iter(burst), 4).expect(202).replies
            accepted |= {str(reply.json()["jobId"]) for reply in replies}
        for told in _statuses(running.url):
            job_id, at = str(told["jobId"]), time.time()
            if job_id not in accepted:
                continue
            if told["status"] == "DONE":
                ends[job_id] = datetime.fromisoformat(str(told["finishedAt"])).timestamp()
            elif told["isTerminal"]:
                raise RuntimeError(f"A job did not succeed: {told}")
            elif told["etaSeconds"] is not None:
                eta = float(str(told["etaSeconds"]))
                tellings.append(_Telling(job_id=job_id, status=str(told["status"]), at=at, eta=eta))
        time.sleep(PAUSE)
    return tellings, ends


def _statuses(url: str) -> Iterator[dict[str, object]]:
    for number in range(CUSTOMERS):
        answer = load.ask(url, load.get(f"/customers/customer-{number}/photos?limit=200"))
        yield from answer.json().get("photos", ())


def _left(telling: _Telling, ends: dict[str, float]) -> float:
    return ends[telling.job_id] - telling.at


def _counts(telling: _Telling, ends: dict[str, float]) -> bool:
    return _left(telling, ends) > LEAST


def _error(telling: _Telling, ends: dict[str, float]) -> float:
    left = _left(telling, ends)
    return abs(telling.eta - left) / left


def _by_time_left(tellings: Sequence[_Telling], ends: dict[str, float]) -> Table:
    rows = []
    for least, most in ((LEAST, 3), (3, 10), (10, 30), (30, 1e9)):
        here = [telling for telling in tellings if least < _left(telling, ends) <= most]
        if here:
            errors = [_error(telling, ends) for telling in here]
            ratio = median(telling.eta / _left(telling, ends) for telling in here)
            name = f"{least:g} to {most:g} s" if most < 1e9 else f"more than {least:g} s"
            rows.append((name, len(here), 100 * median(errors), ratio))
    return Table(
        title="By the true time left",
        columns=("left", "answers", "median error, %", "median of told over true"),
        rows=rows,
    )
