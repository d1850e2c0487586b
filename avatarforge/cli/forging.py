"""`avatarforge forge`: photos in, avatars and before/after pictures out."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from avatarforge.cli.comparison import write_comparison
from avatarforge.cli.photos import SAMPLE, NoSuchPhoto
from avatarforge.cli.serving import started
from avatarforge.cli.terminal import err, out, terminating_like_ctrl_c
from avatarforge.client import Client, JobFailed, ServerUnreachable, Status
from avatarforge.settings import load_settings

_SUFFIXES = {"image/png": ".png", "image/webp": ".webp", "image/jpeg": ".jpg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Forged:
    """One photo's results."""

    photo: Path
    avatar: Path
    comparison: Path
    job: Status


DEMO: dict[str, object] = {"style": "flat-illustration", "seed": 4}
"""What the demo asks for where its caller does not say: the same on every machine."""


def forge(
    *,
    photos: list[Path],
    parameters: Mapping[str, object],
    customer: str,
    folder: Path,
    server: str | None,
    options: dict[str, str],
    start: bool,
    demo: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Raises `ClientError` and `NoSuchPhoto`; pictures that were finished before stay in `folder`."""
    chosen = photos or [SAMPLE]
    if demo:
        parameters = DEMO | {name: value for name, value in parameters.items() if value is not None}
    for photo in chosen:
        if not photo.is_file():
            raise NoSuchPhoto(photo)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with terminating_like_ctrl_c(), _server(server, options, start) as url, Client(url) as client:
        if demo:
            err.print(f"Uploading {_few(chosen)} to {url}")
        results = _forged(client, chosen, parameters, customer, folder, timeout)
    _tell(results, as_json, time.monotonic() - began)


@contextmanager
def _server(server: str | None, options: dict[str, str], start: bool) -> Iterator[str]:
    """The URL of the server to use; one that is started here ends with the block."""
    settings = load_settings(environ={**os.environ, **options})
    url = server or f"http://{settings.http.host}:{settings.http.port}"
    with Client(url) as client:
        ready = client.is_ready()
    with ExitStack() as stack:
        if not ready:
            if server is not None or not start:
                raise ServerUnreachable(
                    url, "nothing there is ready" if server else "use --start to start one"
                )
            # We talk REST to it, and another one may have the port for gRPC.
            instance = stack.enter_context(started(None, options, grpc=False))
            err.print(f"AvatarForge is ready after {instance.timings.elapsed:.1f} s.")
            stack.callback(err.print, "Stopping what was started …")
            url = instance.url
        yield url


def _forged(
    client: Client,
    photos: list[Path],
    parameters: Mapping[str, object],
    customer: str,
    folder: Path,
    timeout: float,
) -> list[Forged]:
    """All photos are submitted at once, and followed together."""
    with _progress() as progress:
        jobs = [(photo, client.submit(customer, photo, **parameters)) for photo in photos]
        lines = [progress.add_task(photo.name, total=1, state="PENDING") for photo, _ in jobs]
        results = []
        for (photo, job), line, name in zip(jobs, lines, _names(photos), strict=True):
            done = _followed(client, job, progress, line, timeout)
            results.append(_saved(client, done, photo, folder / name))
        return results


def _progress() -> Progress:
    columns = ("[bold]{task.description}", BarColumn(), "{task.fields[state]}", TimeElapsedColumn())
    return Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=err)


def _followed(client: Client, job: Status, progress: Progress, line: TaskID, timeout: float) -> Status:
    last = job
    for last in client.follow(job, timeout):
        _show(progress, line, last)
    if last["status"] != "DONE":
        raise JobFailed(last)
    return last


def _show(progress: Progress, line: TaskID, job: Status) -> None:
    steps = job.get("progress") or {}
    total = steps.get("totalSteps") or 1
    if job["status"] == "DONE":
        progress.update(line, total=total, completed=total, state="DONE")
    elif job["status"] == "PENDING" and job.get("queuePosition"):
        progress.update(line, state=f"PENDING, number {job['queuePosition']}")
    else:
        state = f"step {steps['step']}/{steps['totalSteps']}" if steps.get("totalSteps") else job["status"]
        progress.update(line, total=total, completed=steps.get("step", 0), state=state)


def _saved(client: Client, job: Status, photo: Path, stem: Path) -> Forged:
    content, media_type = client.avatar(job)
    avatar = stem.with_name(f"{stem.name}-avatar{_SUFFIXES.get(media_type, '.png')}")
    avatar.write_bytes(content)
    comparison = stem.with_name(f"{stem.name}-before-after.png")
    write_comparison(photo, avatar, comparison, f"{job['model']}, seed {job['seed']}")
    return Forged(photo=photo, avatar=avatar, comparison=comparison, job=job)


def _names(photos: list[Path]) -> list[str]:
    """A name for each photo's files; photos of one name are numbered from the second on."""
    seen: dict[str, int] = {}
    names = []
    for photo in photos:
        seen[photo.stem] = number = seen.get(photo.stem, 0) + 1
        names.append(photo.stem if number == 1 else f"{photo.stem}-{number}")
    return names


def _few(photos: list[Path]) -> str:
    return str(photos[0]) if len(photos) == 1 else f"{len(photos)} photos"


def _tell(results: list[Forged], as_json: bool, seconds: float) -> None:
    if as_json:
        rows = [
            {
                "photo": str(result.photo),
                "avatar": str(result.avatar.resolve()),
                "beforeAfter": str(result.comparison.resolve()),
                "job": dict(result.job),
            }
            for result in results
        ]
        out.print_json(json.dumps(rows))
        return
    for result in results:
        out.print(f"avatar        {result.avatar.resolve()}", highlight=False)
        out.print(f"before/after  {result.comparison.resolve()}", highlight=False)
    err.print(f"[bold green]Done[/] in {seconds:.1f} s.")
