"""`avatarforge forge`: make avatars and before/after images of photos."""

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from avatarforge.cli.comparison import write_comparison
from avatarforge.cli.connect import RETRY_TIMEOUT_SECONDS, require_server, resolve_url
from avatarforge.cli.photos import SAMPLE, list_photos
from avatarforge.cli.progress_bars import ProgressBars
from avatarforge.cli.terminal import err, get_exit_code, interrupt_on_signals, out, print_error
from avatarforge.cli.up import start as start_server
from avatarforge.client import (
    AsyncClient,
    Client,
    ClientError,
    JobChanged,
    JobFailed,
    JobProgressed,
    ProfilePhotoJobStatus,
    Snapshot,
    StillRunning,
)
from avatarforge.domain.errors import FormattedError, PhotoTooLarge
from avatarforge.settings import load_settings

MAX_CONCURRENT_PHOTOS = 32
"""The server has a queue of its own."""

STANDARD_INPUT = Path("-")


class NoStandardInput(FormattedError):
    """A photo is to come from standard input, which is closed."""

    message = "'-' stands for a photo from standard input, but that is closed."


DEMO_PARAMETERS = {"style": "watercolor", "seed": 7}
"""Defaults of the demo: they make the same avatar on every machine."""


@dataclass(kw_only=True, slots=True)
class Result:
    """The outcome of one photo."""

    photo: Path
    job: ProfilePhotoJobStatus | None = None
    """`None` if it was not accepted."""
    avatars: list[Path] = field(default_factory=list)
    """The files, by their index; one, unless more were asked for. A job that failed may have made some."""
    comparison: Path | None = None
    error: ClientError | OSError | None = None


def forge(
    *,
    photos: list[Path],
    parameters: dict[str, Any],
    customer: str,
    folder: Path,
    url: str | None,
    api_key: str | None,
    options: dict[str, str],
    start: bool,
    demo: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Make the avatars. A photo that fails does not stop the others. Raises `NoServer` and the errors of
    `list_photos`, and `NoStandardInput` and `PhotoTooLarge` for the photo `-`."""
    if demo:
        given = {name: value for name, value in parameters.items() if value is not None}
        parameters = {**DEMO_PARAMETERS, **given}
    started_at = time.monotonic()
    unsaved: dict[str, None] = {}
    chosen = _choose_photos(photos or [SAMPLE])
    standard_input = b""
    if STANDARD_INPUT in chosen:
        limits = load_settings(environ={**os.environ, **options}).upload
        standard_input = _read_standard_input(limits.max_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(interrupt_on_signals())
        with _open_server(url, options, start) as (server, restart):
            # Said once the server is gone, if it goes.
            stack.callback(_print_how_to_save, unsaved, customer, folder, server, restart)
            if demo:
                what = str(chosen[0]) if len(chosen) == 1 else f"{len(chosen)} photos"
                err.print(f"Uploading {what} to {server}")
            forge = _Forge(server, api_key, parameters, customer, folder, timeout, unsaved, standard_input)
            results = asyncio.run(forge.make_avatars(chosen))
        _print_results(results, as_json, time.monotonic() - started_at)


def _choose_photos(paths: list[Path]) -> list[Path]:
    """Return the photos, those of folders one by one. Raises the errors of `list_photos`."""
    if paths.count(STANDARD_INPUT) > 1:
        raise typer.BadParameter("'-' is given more than once, but standard input holds one photo.")
    return [photo for path in paths for photo in ([path] if path == STANDARD_INPUT else list_photos(path))]


def _read_standard_input(max_bytes: int) -> bytes:
    """Return the photo. Raises `NoStandardInput`, and `PhotoTooLarge` without reading the rest."""
    if sys.stdin is None or sys.stdin.closed:
        raise NoStandardInput
    content = sys.stdin.buffer.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise PhotoTooLarge(max_bytes)
    return content


def _print_how_to_save(
    unsaved: Collection[str], customer: str, folder: Path, url: str, restart: str | None
) -> None:
    """`restart` is the command that starts the server again, where it was started here and has ended."""
    if not unsaved:
        return
    where = [] if url == resolve_url(None) else ["--url", url]
    save = ["avatarforge", "jobs", "save", *unsaved, "--customer", customer, "--out", str(folder), *where]
    is_one = len(unsaved) == 1
    what = "The avatar of 1 job is" if is_one else f"The avatars of {len(unsaved)} jobs are"
    them = "it" if is_one else "them"
    how = f"Save {them} with:"
    if restart is not None:
        how = f"The server starts again with\n  {restart}\nSave {them} then with:"
    err.print(f"{what} not saved yet. {escape(how)}\n  {escape(shlex.join(save))}", highlight=False)


@contextmanager
def _open_server(url: str | None, options: dict[str, str], start: bool) -> Iterator[tuple[str, str | None]]:
    """Yield the URL of the server to use; one that is started here ends with the block, and the command that
    starts it again comes with it."""
    server, restart = resolve_url(url, options), None
    with Client(server, timeout=5, retry_timeout=0) as client:
        ready = client.is_ready()
    with ExitStack() as stack:
        if not ready and (url is not None or not start):
            # One that answers, but is not ready yet, gets as much time as the client's retry timeout.
            require_server(server)
        elif not ready:
            # We talk REST to it, and another one may have the port for gRPC.
            instance = stack.enter_context(start_server(None, options, grpc=False))
            err.print(f"AvatarForge is ready after {instance.timings.total_seconds:.1f} s.")
            stack.callback(err.print, "Stopping what was started …")
            server = instance.url
            given = [f"{name}={shlex.quote(value)}" for name, value in options.items()]
            restart = " ".join([*given, "avatarforge up"])
        yield server, restart


@dataclass(frozen=True, slots=True)
class _Forge:
    """Makes avatars of photos, many at a time."""

    url: str
    api_key: str | None
    parameters: dict[str, Any]
    customer: str
    folder: Path
    timeout: float
    unsaved: dict[str, None]
    """Ids of jobs that were accepted, as long as their avatars are neither saved nor given up."""
    standard_input: bytes
    """The photo that is called `-`."""

    async def make_avatars(self, photos: list[Path]) -> list[Result]:
        """Return one result for each photo, in their order."""
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_PHOTOS)
        async with AsyncClient(self.url, api_key=self.api_key, retry_timeout=RETRY_TIMEOUT_SECONDS) as client:
            with ProgressBars(len(photos)) as bars:

                async def make_in_turn(photo: Path, name: str) -> Result:
                    result = Result(photo=photo)
                    async with semaphore:
                        bars.add(name, photo)
                        try:
                            await self._make_avatar(client, result, self.folder / name, bars)
                        except (ClientError, OSError) as error:
                            result.error = error
                        bars.finish(name, has_failed=result.error is not None)
                    return result

                return await asyncio.gather(*map(make_in_turn, photos, _choose_names(photos)))

    async def _make_avatar(self, client: AsyncClient, result: Result, stem: Path, bars: ProgressBars) -> None:
        """Submit the result's photo, and note in it what becomes of that. Raises `JobFailed` after what a
        failed job made is saved."""
        source = self.standard_input if result.photo == STANDARD_INPUT else result.photo
        job = result.job = await client.submit(self.customer, source, **self.parameters)
        self.unsaved[job.job_id] = None
        job = await self._follow(client, result, job, stem.name, bars)
        after = []
        # One that has not ended was erased, with its images.
        for image in job.images if job.is_terminal else ():
            file = await client.download(job, index=image.index)
            number, title = "", job.model
            if job.parameters.variants > 1:
                number, title = f"-{image.index}", f"{image.index}: {image.style or job.model or 'avatar'}"
            avatar = stem.with_name(f"{stem.name}-avatar{number}{file.suffix}")
            avatar.write_bytes(file.content)
            result.avatars.append(avatar)
            after.append((file.content, f"{title}, seed {image.seed}"))
        del self.unsaved[job.job_id]
        if after:
            comparison = stem.with_name(f"{stem.name}-before-after.png")
            square = await client.download(job, "square")
            await asyncio.to_thread(write_comparison, (square.content, result.photo.name), after, comparison)
            result.comparison = comparison
        if job.status != "DONE":
            raise JobFailed(job)

    async def _follow(
        self, client: AsyncClient, result: Result, job: ProfilePhotoJobStatus, key: str, bars: ProgressBars
    ) -> ProfilePhotoJobStatus:
        """Return the job as it ended."""
        try:
            async with asyncio.timeout(self.timeout), aclosing(client.watch(job)) as events:
                async for event in events:
                    match event:
                        case JobChanged(job=latest) | JobProgressed(job=latest) | Snapshot(jobs=(latest,)):
                            job = result.job = latest
                            bars.update(key, latest)
        except TimeoutError:
            raise StillRunning(job, self.timeout) from None
        return job


def _choose_names(photos: list[Path]) -> list[str]:
    """Return a name for each photo's files; photos of one name are numbered from the second on."""
    seen: dict[str, int] = {}
    names = []
    for photo in photos:
        stem = "stdin" if photo == STANDARD_INPUT else photo.stem
        seen[stem] = number = seen.get(stem, 0) + 1
        names.append(stem if number == 1 else f"{stem}-{number}")
    return names


def _print_results(results: list[Result], as_json: bool, seconds: float) -> None:
    """Print the files and errors. Raises `typer.Exit` with the first error's code."""
    if as_json:
        out.print_json(data=[_result_to_json(result) for result in results])
    else:
        for result in results:
            for avatar in result.avatars:
                out.print(f"avatar        {avatar.resolve()}", highlight=False)
            if result.comparison is not None:
                out.print(f"before/after  {result.comparison.resolve()}", highlight=False)
    errors = []
    for result in results:
        if result.error is not None:
            print_error(f"{result.photo}: {result.error}")
            errors.append(result.error)
    if errors:
        raise typer.Exit(get_exit_code(errors[0]))
    if not as_json:
        err.print(f"[bold green]Done[/] in {seconds:.1f} s.")


def _result_to_json(result: Result) -> dict[str, Any]:
    message: dict[str, Any] = {"photo": str(result.photo)}
    if result.error is not None:
        code = getattr(result.error, "code", type(result.error).__name__)
        message["error"] = {"code": code, "message": str(result.error)}
    if result.job is not None:
        message["avatars"] = [str(avatar.resolve()) for avatar in result.avatars]
        message["beforeAfter"] = None if result.comparison is None else str(result.comparison.resolve())
        message["job"] = json.loads(result.job.json_bytes())
    return message
