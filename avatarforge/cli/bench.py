"""`avatarforge bench`: how fast a running server is, seen from a client."""

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from avatarforge.cli.connecting import PATIENCE_SECONDS, check_there, server_url
from avatarforge.cli.photos import SAMPLE, NoSuchPhoto
from avatarforge.cli.terminal import err, out, terminating_like_ctrl_c
from avatarforge.client import AsyncClient, NotFound, ProfilePhotoJobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One photo, in seconds by this machine's clock."""

    accepted: float
    """From the upload's first byte to its 202."""
    ended: float
    """From the upload's first byte to hearing of the avatar."""
    job: ProfilePhotoJobStatus


def bench(
    *, photo: Path | None, photos: int, at_once: int, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Raises `JobFailed` for the first job that ends without an avatar, and `Refused`."""
    source = photo or SAMPLE
    if not source.is_file():
        raise NoSuchPhoto(source)
    there = server_url(url)
    check_there(there)
    with terminating_like_ctrl_c():
        measured, seconds = asyncio.run(_measured(there, api_key, source.read_bytes(), photos, at_once))
    report = report_of(measured, seconds, at_once, there)
    if as_json:
        out.print_json(json.dumps(report))
    else:
        _show(report)


async def _measured(
    url: str, api_key: str | None, photo: bytes, photos: int, at_once: int
) -> tuple[list[Measured], float]:
    """Every photo's times, and how long all of it took. What was made is erased again."""
    customer = f"bench-{secrets.token_hex(4)}"
    async with AsyncClient(url, api_key=api_key, timeout=120, patience=PATIENCE_SECONDS) as client:
        try:
            with _progress() as progress:
                line = progress.add_task("warming up", total=1)
                # The first picture may wait for the model to be loaded: that is another measurement.
                await _one(client, customer, photo, 0)
                progress.reset(line, total=photos, description="measuring")
                turns, began = asyncio.Semaphore(at_once), time.perf_counter()
                tasks = [_in_turn(turns, client, customer, photo, n, progress, line) for n in range(photos)]
                return await asyncio.gather(*tasks), time.perf_counter() - began
        finally:
            # Without a photo that was accepted there is no such customer; why is what the caller shall hear.
            with suppress(NotFound):
                await client.erase_customer(customer)


async def _in_turn(
    turns: asyncio.Semaphore,
    client: AsyncClient,
    customer: str,
    photo: bytes,
    number: int,
    progress: Progress,
    line: TaskID,
) -> Measured:
    async with turns:
        measured = await _one(client, customer, photo, number)
    progress.advance(line)
    return measured


async def _one(client: AsyncClient, customer: str, photo: bytes, number: int) -> Measured:
    began = time.perf_counter()
    job = await client.submit(customer, photo, seed=number)
    accepted = time.perf_counter() - began
    done = await client.wait(job, seconds=600)
    return Measured(accepted=accepted, ended=time.perf_counter() - began, job=done)


def report_of(measured: Sequence[Measured], seconds: float, at_once: int, url: str) -> dict[str, Any]:
    """The figures, as `--json` writes them; times in seconds."""
    steps = [each.job.timings.steps for each in measured if each.job.timings.steps is not None]
    return {
        "url": url,
        "photos": len(measured),
        "atOnce": at_once,
        "seconds": round(seconds, 3),
        "avatarsPerSecond": round(len(measured) / seconds, 3),
        "uploadToAccepted": _percentiles([each.accepted for each in measured]),
        "uploadToAvatar": _percentiles([each.ended for each in measured]),
        "denoising": _percentiles(steps),
        "models": sorted({str(each.job.model) for each in measured}),
        "backends": sorted({str(each.job.backend) for each in measured}),
        "repeated": sum(each.job.attempt > 1 for each in measured),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    # Nearest rank: with few values the highest percentiles are the longest one.
    ranks = {name: ordered[-(-len(ordered) * percent // 100) - 1] for name, percent in _PERCENTS.items()}
    return {name: round(value, 4) for name, value in {**ranks, "max": ordered[-1]}.items()}


_PERCENTS = {"p50": 50, "p90": 90, "p99": 99}


def _progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _show(report: dict[str, Any]) -> None:
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
        if figures := report[name]:
            table.add_row(label, *(f"{figures[column]:.3f}" for column in ("p50", "p90", "p99", "max")))
    out.print(table)
    if report["repeated"]:
        err.print(f"{report['repeated']} jobs were started more than once.")
    err.print("Seen from this client: where it runs beside the server, both share the machine.")
