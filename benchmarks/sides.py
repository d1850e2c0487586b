"""Sides that take turns in one cluster: each sends its own requests from many clients."""

import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from statistics import median

from benchmarks import load
from benchmarks.cpu import CpuMeter
from benchmarks.report import Figure, Table, percentile
from benchmarks.service import Service

CLIENTS = 32


class Side:
    """One of those that are compared."""

    def __init__(self, name: str, requests: Sequence[bytes], each: int, *, status: int, unit: str) -> None:
        """A turn sends `each` requests, which are all to be answered with `status`; `unit` is what one is."""
        self.name = name
        self.rates: list[float] = []
        """Answers a second, by turn."""
        self._requests = requests
        self._each = each
        self._status = status
        self._unit = unit
        self._latencies: list[float] = []
        self._cpu: list[tuple[str, float]] = []

    def warm_up(self, running: Service, seconds: float = 60) -> None:
        """Until all goes well: HAProxy cuts connections when it learns of a new application."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                load.send(running.url, self._some(3 * CLIENTS), CLIENTS).expect(self._status)
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def take_turn(self, running: Service, database_pid: int | None = None) -> None:
        meter = CpuMeter(running.pid, database_pid)
        done = load.send(running.url, self._some(self._each), CLIENTS).expect(self._status)
        self.rates.append(done.rate)
        self._latencies.extend(done.latencies)
        self._cpu = meter.milliseconds_each(self._each)

    @property
    def rate(self) -> float:
        """Answers a second: the turns' median."""
        return median(self.rates)

    def figures(self) -> list[Figure]:
        return [
            Figure(name=f"{self.name}, median", value=self.rate, unit=f"{self._unit}s/s"),
            Figure(name=f"{self.name}, p50", value=1000 * percentile(self._latencies, 0.5), unit="ms"),
            Figure(name=f"{self.name}, p99", value=1000 * percentile(self._latencies, 0.99), unit="ms"),
        ]

    def cpu_table(self) -> Table:
        return Table(
            title=f"{self.name}: CPU for one {self._unit}, milliseconds by process, last turn",
            columns=("process", "ms"),
            rows=self._cpu,
        )

    def _some(self, number: int) -> Iterator[bytes]:
        return islice(cycle(self._requests), number)


def turns_table(title: str, sides: Sequence[Side]) -> Table:
    """The rates by turn."""
    turns = range(1, len(sides[0].rates) + 1)
    return Table(
        title=title,
        columns=("turn", *(side.name for side in sides)),
        rows=list(zip(turns, *(side.rates for side in sides), strict=True)),
    )
