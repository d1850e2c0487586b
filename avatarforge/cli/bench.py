"""`avatarforge bench`: measure how fast a running server is for its clients."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from avatarforge.cli.connect import RETRY_TIMEOUT_SECONDS, require_server, resolve_url
from avatarforge.cli.photos import SAMPLE, NoSuchPhoto
from avatarforge.cli.terminal import err, interrupt_on_signals, out
from avatarforge.client import AsyncClient, NotFound, ProfilePhotoJobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The times of one photo, in seconds by this machine's clock."""

    accepted: float
    """From the upload's first byte to its 202."""
    ended: float
    """From the upload's first byte to the response that the avatar is there."""
    job: ProfilePhotoJobStatus


def bench(
    *, photo: Path | None, photos: int, at_once: int, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Upload photos and print the times. Raises `JobFailed` for the first job that ends without an avatar."""
    source = photo or SAMPLE
    if not source.is_file():
        raise NoSuchPhoto(str(source))
    server = resolve_url(url)
    require_server(server)
    with interrupt_on_signals():
        measurements, seconds = asyncio.run(
            _measure_photos(server, api_key, source.read_bytes(), photos, at_once)
        )
    report = build_report(measurements, seconds, at_once, server)
    if as_json:
        out.print_json(data=report)
    else:
        _print_report(report)


async def _measure_photos(
    url: str, api_key: str | None, photo: bytes, photos: int, at_once: int
) -> tuple[list[Measurement], float]:
    """Return every photo's times, and how long all of them took. Erases what was made."""
    customer = f"bench-{secrets.token_hex(4)}"
    async with AsyncClient(url, api_key=api_key, timeout=120, retry_timeout=RETRY_TIMEOUT_SECONDS) as client:
        try:
            with _create_progress() as progress:
                task = progress.add_task("warming up", total=1)
                # The first image may wait for the model to be loaded: that is another measurement.
                await _measure_photo(client, customer, photo, 0)
                progress.reset(task, total=photos, description="measuring")
                semaphore, started_at = asyncio.Semaphore(at_once), time.perf_counter()

                async def measure_in_turn(number: int) -> Measurement:
                    async with semaphore:
                        measurement = await _measure_photo(client, customer, photo, number)
                    progress.advance(task)
                    return measurement

                measurements = await asyncio.gather(*map(measure_in_turn, range(photos)))
                return measurements, time.perf_counter() - started_at
        finally:
            # If no photo was accepted, there is no such customer: the caller gets the error that says why.
            with suppress(NotFound):
                await client.erase_customer(customer)


async def _measure_photo(client: AsyncClient, customer: str, photo: bytes, number: int) -> Measurement:
    started_at = time.perf_counter()
    job = await client.submit(customer, photo, seed=number)
    accepted = time.perf_counter() - started_at
    done = await client.wait(job, seconds=600)
    return Measurement(accepted=accepted, ended=time.perf_counter() - started_at, job=done)


def build_report(
    measurements: Sequence[Measurement], seconds: float, at_once: int, url: str
) -> dict[str, Any]:
    """Return the object that `--json` writes; times are in seconds."""
    steps = [each.job.timings.steps for each in measurements if each.job.timings.steps is not None]
    return {
        "url": url,
        "photos": len(measurements),
        "atOnce": at_once,
        "seconds": round(seconds, 3),
        "avatarsPerSecond": round(len(measurements) / seconds, 3),
        "uploadToAccepted": _compute_percentiles([each.accepted for each in measurements]),
        "uploadToAvatar": _compute_percentiles([each.ended for each in measurements]),
        "denoising": _compute_percentiles(steps),
        "models": sorted({str(each.job.model) for each in measurements}),
        "backends": sorted({str(each.job.backend) for each in measurements}),
        "repeated": sum(each.job.attempt > 1 for each in measurements),
    }


def _compute_percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    # Nearest rank: with few values the highest percentiles are the longest one.
    ranks = {name: ordered[-(-len(ordered) * percent // 100) - 1] for name, percent in _PERCENTS.items()}
    return {name: round(value, 4) for name, value in {**ranks, "max": ordered[-1]}.items()}


_PERCENTS = {"p50": 50, "p90": 90, "p99": 99}


def _create_progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _print_report(report: dict[str, Any]) -> None:
    out.print(
        f"[bold]{report['avatarsPerSecond']:.2f} avatars a second[/]: {report['photos']} photos in "
        f"{report['seconds']:.1f} s, {report['atOnce']} at a time, with {', '.join(report['models'])}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("seconds", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="left" if heading == "seconds" else "right", no_wrap=True)
    for label, name in (
        ("upload to 202", "uploadToAccepted"),
        ("upload to avatar", "uploadToAvatar"),
        ("of it denoising", "denoising"),
    ):
        if percentiles := report[name]:
            table.add_row(label, *(f"{percentiles[column]:.3f}" for column in ("p50", "p90", "p99", "max")))
    out.print(table)
    if report["repeated"]:
        err.print(f"{report['repeated']} jobs were started more than once.")
    err.print("Measured by this client: if it runs on the server's machine, both share it.")
