"""Photos accepted a second from 32 clients, beside an ingress that only reads them."""

import time
from collections.abc import Iterator
from itertools import cycle, islice
from statistics import median

from benchmarks import load
from benchmarks.bare import PREFIX
from benchmarks.cpu import CpuMeter
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, Service, mariadb, service

CLIENTS = 32


def run(options: Options) -> Report:
    photo = noisy_jpeg()
    uploads = options.size(1000, 64)
    rounds = options.repeat(7, quick=2)
    with mariadb(options.folder / "mariadb") as server:
        settings = {"AVATARFORGE_DATABASE_URL": server.create_database("avatarforge"), **WITHOUT_GENERATION}
        with service(options.folder / "service", settings, bare=True) as running:
            bare = _Side("bare ingress", PREFIX, photo, uploads)
            ours = _Side("AvatarForge", "", photo, uploads)
            sides = (bare, ours)
            for side in sides:
                side.warm_up(running)
            for _ in range(rounds):
                for side in sides:
                    side.take_turn(running, server.pid)
    ratio = median(ours.rates) / median(bare.rates)
    return Report(
        title=f"Throughput: photos accepted from {CLIENTS} clients",
        figures=[
            Figure(name="AvatarForge / bare ingress", value=ratio, unit="", wanted="≥ 0.5"),
            *(figure for side in sides for figure in side.figures()),
        ],
        conditions={
            "photo": f"JPEG of {len(photo)} bytes, 1000 x 1000; the same request bytes on both sides",
            "turns": f"{rounds} of {uploads} uploads on each side, alternating in one cluster; medians",
            "bare ingress": "a FastAPI deployment that reads request.stream() to its end and answers 202, "
            "as many replicas and behind the same HAProxy",
            "durable": "photo in a folder with fsync, job in MariaDB with innodb_flush_log_at_trx_commit=1, "
            "before the 202",
            "client": "one thread on the same cores; its share is in the tables below",
            "generation": "off: Stable Diffusion gets no replica, so accepted jobs wait",
        },
        tables=[
            Table(
                title="Uploads a second by turn",
                columns=("turn", *(side.name for side in sides)),
                rows=list(zip(range(1, rounds + 1), *(side.rates for side in sides), strict=True)),
            ),
            *(
                Table(
                    title=f"{side.name}: CPU for one upload, milliseconds by process, last turn",
                    columns=("process", "ms"),
                    rows=side.cpu,
                )
                for side in sides
            ),
        ],
    )


class _Side:
    """One of the two that are compared."""

    def __init__(self, name: str, prefix: str, photo: bytes, uploads: int) -> None:
        self.name = name
        self.rates: list[float] = []
        self.latencies: list[float] = []
        self.cpu: list[tuple[str, float]] = []
        self._uploads = uploads
        self._requests = [
            load.upload(f"{prefix}/customers/customer-{number}", photo, "image/jpeg")
            for number in range(CLIENTS)
        ]

    def warm_up(self, running: Service, seconds: float = 60) -> None:
        """Until all goes well: HAProxy cuts connections when it learns of a new application."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                load.send(running.url, self._some(3 * CLIENTS), CLIENTS).expect(202)
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def take_turn(self, running: Service, database_pid: int) -> None:
        meter = CpuMeter(running.pid, database_pid)
        done = load.send(running.url, self._some(self._uploads), CLIENTS).expect(202)
        self.rates.append(done.rate)
        self.latencies.extend(done.latencies)
        self.cpu = meter.milliseconds_each(self._uploads)

    def figures(self) -> list[Figure]:
        return [
            Figure(name=f"{self.name}, median", value=median(self.rates), unit="uploads/s"),
            Figure(name=f"{self.name}, p50", value=1000 * percentile(self.latencies, 0.5), unit="ms"),
            Figure(name=f"{self.name}, p99", value=1000 * percentile(self.latencies, 0.99), unit="ms"),
        ]

    def _some(self, number: int) -> Iterator[bytes]:
        return islice(cycle(self._requests), number)
