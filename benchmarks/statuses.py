"""Reads of live jobs from 32 clients, beside an ingress that answers the same for everybody."""

import time
from collections.abc import Iterator
from itertools import cycle, islice
from statistics import median

from benchmarks import load, waiting_jobs
from benchmarks.bare import PREFIX
from benchmarks.cpu import CpuMeter
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, Service, service

CLIENTS = 32
JOBS = 200


def run(options: Options) -> Report:
    reads = options.size(10_000, 500)
    rounds = options.repeat(7, quick=2)
    with service(options.folder / "service", WITHOUT_GENERATION, bare=True) as running:
        customers = [f"customer-{number}" for number in range(JOBS)]
        jobs = waiting_jobs.submit(running.url, customers)
        paths = [
            f"/customers/{customer}/photos/{job}/status"
            for customer, job in zip(customers, jobs, strict=True)
        ]
        bare, ours = _Side("bare ingress", PREFIX, paths, reads), _Side("AvatarForge", "", paths, reads)
        for side in (bare, ours):
            side.warm_up(running)
        for _ in range(rounds):
            for side in (bare, ours):
                side.take_turn(running)
    ratio = median(ours.rates) / median(bare.rates)
    return Report(
        title=f"Status reads: GET …/status of live jobs from {CLIENTS} clients",
        figures=[
            Figure(name="AvatarForge / bare ingress", value=ratio, unit="", wanted="≥ 0.6"),
            *(figure for side in (ours, bare) for figure in side.figures()),
        ],
        conditions={
            "jobs": f"{JOBS} that wait, of as many customers",
            "turns": f"{rounds} of {reads} reads on each side, alternating in one cluster; medians",
            "bare ingress": "a FastAPI route in a Serve deployment that answers a small fixed document",
            "client": "one thread on the same cores, keep-alive",
            "generation": "off",
        },
        tables=[
            Table(
                title="Reads a second by turn",
                columns=("turn", "bare ingress", "AvatarForge"),
                rows=list(zip(range(1, rounds + 1), bare.rates, ours.rates, strict=True)),
            ),
            *(
                Table(
                    title=f"{side.name}: CPU for one read, milliseconds by process, last turn",
                    columns=("process", "ms"),
                    rows=side.cpu,
                )
                for side in (bare, ours)
            ),
        ],
    )


class _Side:
    """One of the two that are compared."""

    def __init__(self, name: str, prefix: str, paths: list[str], reads: int) -> None:
        self.name = name
        self.rates: list[float] = []
        self.cpu: list[tuple[str, float]] = []
        self._latencies: list[float] = []
        self._reads = reads
        self._requests = [load.get(f"{prefix}{path}") for path in paths]

    def warm_up(self, running: Service, seconds: float = 60) -> None:
        """Until all goes well: HAProxy cuts connections when it learns of a new application."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                load.send(running.url, self._some(3 * CLIENTS), CLIENTS).expect(200)
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def take_turn(self, running: Service) -> None:
        meter = CpuMeter(running.pid)
        done = load.send(running.url, self._some(self._reads), CLIENTS).expect(200)
        self.rates.append(done.rate)
        self._latencies.extend(done.latencies)
        self.cpu = meter.milliseconds_each(self._reads)

    def figures(self) -> list[Figure]:
        return [
            Figure(name=f"{self.name}, median", value=median(self.rates), unit="reads/s"),
            Figure(name=f"{self.name}, p99", value=1000 * percentile(self._latencies, 0.99), unit="ms"),
        ]

    def _some(self, number: int) -> Iterator[bytes]:
        return islice(cycle(self._requests), number)
