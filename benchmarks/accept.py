"""How long one client waits for the 202 of one photo."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from benchmarks import load
from benchmarks.cpu import CpuMeter
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, mariadb, service

WARM_UP = 30
"""Uploads before the clock starts: connections are opened, modules imported, statements compiled."""


def run(options: Options) -> Report:
    photo = noisy_jpeg()
    uploads = options.size(500, 20) * options.repeat(1)
    with mariadb(options.folder / "mariadb") as server:
        database = {"AVATARFORGE_DATABASE_URL": server.create_database("avatarforge")}
        with_mariadb = _measured(options.folder / "with-mariadb", database, photo, uploads, server.pid)
    embedded = _measured(options.folder / "with-sqlite", {}, photo, uploads, None)
    return Report(
        title="Accept: one client's POST of a photo to its 202",
        figures=[*_figures("MariaDB", with_mariadb[0], "≤ 25 ms"), *_figures("SQLite", embedded[0], "")],
        conditions={
            "photo": f"JPEG of {len(photo)} bytes, 1000 x 1000",
            "uploads": f"{uploads} after {WARM_UP} to warm up, one after the other on one connection",
            "durable": "photo in a folder with fsync, job in MariaDB (innodb_flush_log_at_trx_commit=1) "
            "or SQLite (synchronous=FULL), before the 202",
            "generation": "off: Stable Diffusion gets no replica, so accepted jobs wait",
        },
        tables=[
            Table(
                title=f"CPU for one upload with {name}, milliseconds by process",
                columns=("process", "ms"),
                rows=rows,
            )
            for name, (_, rows) in (("MariaDB", with_mariadb), ("SQLite", embedded))
        ],
    )


def _measured(
    folder: Path, settings: Mapping[str, str], photo: bytes, uploads: int, database_pid: int | None
) -> tuple[list[float], list[tuple[str, float]]]:
    """Latencies in milliseconds; CPU by process."""
    request = load.upload("/customers/ana", photo, "image/jpeg")
    with service(folder, {**WITHOUT_GENERATION, **settings}) as running:
        load.send(running.url, iter([request] * WARM_UP), 1).expect(202)
        meter = CpuMeter(running.pid, database_pid)
        done = load.send(running.url, iter([request] * uploads), 1).expect(202)
        return [1000 * seconds for seconds in done.latencies], meter.milliseconds_each(uploads)


def _figures(database: str, milliseconds: list[float], wanted: str) -> list[Figure]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return [
        *(
            Figure(
                name=f"{database}, {name}",
                value=percentile(milliseconds, share),
                unit="ms",
                wanted=wanted if name == "p50" else "",
            )
            for name, share in shares.items()
        ),
        Figure(name=f"{database}, mean", value=mean(milliseconds), unit="ms"),
    ]
