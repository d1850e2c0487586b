"""`python -m benchmarks.sizing`: puts the newest results and what follows from them into docs/sizing.md.

Arithmetic only: nothing is measured here.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.options import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"

PEAK = 3.0
"""The busiest seconds of a day, in times of its mean."""
FULL = 0.6
"""How busy a process may be in those."""
CHANGES = 3
"""A job is accepted, started and done; only the first was measured, and counts for each."""
READS = 5
"""`GET …/status` for a job."""
PHOTOS_A_DAY = (10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Milliseconds of CPU, measured."""

    ingress_upload_to_s3: float
    """Into S3, as deployments of several machines have it."""
    ingress_upload_to_folder: float
    ingress_read: float
    tracker_upload: float
    database_upload: float
    stream_kilobytes: float

    @classmethod
    def measured(cls, results: Path = RESULTS) -> "Costs":
        uploads = _cpu(results, "throughput", "with S3")
        reads = _cpu(results, "statuses", "AvatarForge")
        return cls(
            ingress_upload_to_s3=uploads["Ingress"],
            ingress_upload_to_folder=_cpu(results, "throughput", "AvatarForge")["Ingress"],
            ingress_read=reads["Ingress"],
            tracker_upload=uploads["JobTrackerActor"],
            database_upload=uploads["mariadbd"],
            stream_kilobytes=_figure(results, "streams", "memory of a stream"),
        )


def tables(costs: Costs) -> dict[str, str]:
    """The page's tables, by name, in Markdown."""
    measured = [
        (
            "ingress process, for 200 KB into S3",
            f"{costs.ingress_upload_to_s3:.2g} ms of CPU",
            "`throughput`",
        ),
        (
            "ingress process, for 200 KB into a folder",
            f"{costs.ingress_upload_to_folder:.2g} ms of CPU",
            "`throughput`",
        ),
        ("ingress process, for a status read", f"{costs.ingress_read:.2g} ms of CPU", "`statuses`"),
        ("tracker, for an upload", f"{costs.tracker_upload:.2g} ms of CPU", "`throughput`"),
        ("MariaDB, for an upload", f"{costs.database_upload:.2g} ms of CPU", "`throughput`"),
        ("ingress process, for an open stream", f"{costs.stream_kilobytes:.2g} KB", "`streams`"),
    ]
    return {
        "measured": _table(("who", "costs", "benchmark"), measured),
        "arithmetic": _table(
            ("photos a day", "a second, mean", "a second, peak", "ingress replicas", "shards", "MariaDB"),
            [_row(costs, photos) for photos in PHOTOS_A_DAY],
        ),
        "gpus": _table(
            ("seconds of a GPU for an image", *(f"{photos:,} a day" for photos in PHOTOS_A_DAY)),
            [
                (f"{seconds:g}", *(_gpus(photos, seconds) for photos in PHOTOS_A_DAY))
                for seconds in (0.25, 0.5, 1.0, 3.0)
            ],
        ),
    }


def _row(costs: Costs, photos: int) -> tuple[str, ...]:
    mean = photos / 86_400
    peak = PEAK * mean
    ingress = peak * (costs.ingress_upload_to_s3 + READS * costs.ingress_read) / 1000
    tracker = peak * CHANGES * costs.tracker_upload / 1000
    database = peak * CHANGES * costs.database_upload / 1000
    return (
        f"{photos:,}",
        f"{mean:.2g}" if mean < 10 else f"{mean:.0f}",
        f"{peak:.2g}" if peak < 10 else f"{peak:.0f}",
        # One more, so that one may stop.
        str(math.ceil(ingress / FULL) + 1),
        str(math.ceil(tracker / FULL)),
        f"{database:.1g} cores" if database >= 0.05 else "hardly busy",
    )


def _gpus(photos: int, seconds: float) -> str:
    """In the mean and in the peak."""
    mean = photos / 86_400 * seconds
    return f"{math.ceil(mean / 0.9)} to {math.ceil(PEAK * mean / 0.9)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(page: str, made: dict[str, str]) -> str:
    """The page with these tables in their places."""
    for name, table in made.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        page, count = place.subn(lambda found, table=table: f"{found[1]}{table}{found[2]}", page)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} places for the table {name!r}, not one")
    return page


def _cpu(results: Path, benchmark: str, side: str) -> dict[str, float]:
    """Milliseconds of CPU for one request, by the last word of the process' name."""
    for table in _read(results, benchmark)["tables"]:
        if table["title"].startswith(f"{side}: CPU"):
            return dict(_by_process(table["rows"]))
    raise ValueError(f"{benchmark}.json has no table of the CPU time of {side}")


def _by_process(rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, float]]:
    for name, milliseconds in rows:
        yield (
            re.split(r"[:.]", name.removeprefix("ray::").replace("ServeReplica:avatarforge:", ""))[0],
            float(milliseconds),
        )


def _figure(results: Path, benchmark: str, name: str) -> float:
    [value] = [entry["value"] for entry in _read(results, benchmark)["figures"] if entry["name"] == name]
    return float(value)


def _read(results: Path, benchmark: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / f"{benchmark}.json").read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables(Costs.measured())), encoding="utf-8")
