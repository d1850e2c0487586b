"""`avatarforge forge`: photos in, avatars and before/after pictures out."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from avatarforge.cli.bars import Bars
from avatarforge.cli.comparison import write_comparison
from avatarforge.cli.connecting import PATIENCE_SECONDS, check_there, server_url
from avatarforge.cli.photos import SAMPLE, NoSuchPhoto
from avatarforge.cli.serving import started
from avatarforge.cli.terminal import err, exit_code, out, tell_error, terminating_like_ctrl_c
from avatarforge.client import (
    AsyncClient,
    Changed,
    Client,
    ClientError,
    JobFailed,
    ProfilePhotoJobStatus,
    Progressed,
    Snapshot,
    StillRunning,
)
from avatarforge.client.calls import Wishes

_SUFFIXES = {"image/png": ".png", "image/webp": ".webp", "image/jpeg": ".jpg"}

AT_ONCE = 32
"""Photos that are uploaded and followed at a time; the server has a line of its own."""

DEMO: Wishes = {"style": "flat-illustration", "prompt": "smiling", "seed": 34}
"""What the demo asks for where its caller does not say: the same on every machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forged:
    """One photo's results."""

    photo: Path
    avatar: Path
    comparison: Path
    job: ProfilePhotoJobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A photo of which there is no avatar."""

    photo: Path
    error: ClientError | OSError


def forge(
    *,
    photos: list[Path],
    wishes: Wishes,
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
    """Raises `NobodyThere` and `NoSuchPhoto`. A photo that fails does not keep the others from theirs."""
    chosen = photos or [SAMPLE]
    if demo:
        wishes = {**DEMO, **_given(wishes)}
    for photo in chosen:
        if not photo.is_file():
            raise NoSuchPhoto(photo)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with terminating_like_ctrl_c(), _server(url, options, start) as there:
        if demo:
            err.print(f"Uploading {_few(chosen)} to {there}")
        forging = _Forging(there, api_key, wishes, customer, folder, timeout)
        results = asyncio.run(forging.all_of(chosen))
    _tell(results, as_json, time.monotonic() - began)


@contextmanager
def _server(url: str | None, options: dict[str, str], start: bool) -> Iterator[str]:
    """The URL of the server to use; one that is started here ends with the block."""
    there = server_url(url, options)
    with Client(there, timeout=5, patience=0) as client:
        ready = client.is_ready()
    with ExitStack() as stack:
        if not ready and (url is not None or not start):
            # One that is there, but not ready yet, is waited for as long as the client's patience lasts.
            check_there(there)
        elif not ready:
            # We talk REST to it, and another one may have the port for gRPC.
            instance = stack.enter_context(started(None, options, grpc=False))
            err.print(f"AvatarForge is ready after {instance.timings.elapsed:.1f} s.")
            stack.callback(err.print, "Stopping what was started …")
            there = instance.url
        yield there


class _Forging:
    """Makes avatars of photos, many at a time."""

    def __init__(
        self, url: str, api_key: str | None, wishes: Wishes, customer: str, folder: Path, timeout: float
    ) -> None:
        self._url, self._api_key = url, api_key
        self._wishes, self._customer = wishes, customer
        self._folder, self._timeout = folder, timeout

    async def all_of(self, photos: list[Path]) -> list[Forged | Failed]:
        """One result for each photo, in their order."""
        turns = asyncio.Semaphore(AT_ONCE)
        async with AsyncClient(self._url, api_key=self._api_key, patience=PATIENCE_SECONDS) as client:
            with Bars(len(photos)) as bars:

                async def one(photo: Path, name: str) -> Forged | Failed:
                    async with turns:
                        try:
                            return await self._one(client, photo, self._folder / name, bars)
                        except (ClientError, OSError) as error:
                            bars.failed(name)
                            return Failed(photo=photo, error=error)

                return await asyncio.gather(*map(one, photos, _names(photos)))

    async def _one(self, client: AsyncClient, photo: Path, stem: Path, bars: Bars) -> Forged:
        bars.begin(stem.name, photo)
        accepted = await client.submit(self._customer, photo, **self._wishes)
        done = await self._followed(client, accepted, stem.name, bars)
        picture = await client.download(done)
        avatar = stem.with_name(f"{stem.name}-avatar{_SUFFIXES.get(picture.media_type, '.png')}")
        comparison = stem.with_name(f"{stem.name}-before-after.png")
        avatar.write_bytes(picture.content)
        square = await client.download(done, "square")
        await asyncio.to_thread(
            write_comparison,
            (square.content, photo.name),
            (picture.content, f"{done.model}, seed {done.seed}"),
            comparison,
        )
        bars.done(stem.name)
        return Forged(photo=photo, avatar=avatar, comparison=comparison, job=done)

    async def _followed(
        self, client: AsyncClient, job: ProfilePhotoJobStatus, key: str, bars: Bars
    ) -> ProfilePhotoJobStatus:
        last = job
        try:
            async with asyncio.timeout(self._timeout), aclosing(client.watch(job)) as story:
                async for news in story:
                    match news:
                        case Changed(job=latest) | Progressed(job=latest) | Snapshot(jobs=(latest,)):
                            last = latest
                            bars.show(key, latest)
        except TimeoutError:
            raise StillRunning(last, self._timeout) from None
        if last.status != "DONE":
            raise JobFailed(last)
        return last


def _given(wishes: Mapping[str, Any]) -> Wishes:
    given: Wishes = {name: wish for name, wish in wishes.items() if wish is not None}  # type: ignore[assignment]  # its keys
    return given


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


def _tell(results: list[Forged | Failed], as_json: bool, seconds: float) -> None:
    """Raises `typer.Exit` with the first failure's code."""
    failures = [result for result in results if isinstance(result, Failed)]
    if as_json:
        out.print_json(json.dumps([_row(result) for result in results]))
    else:
        for result in results:
            if isinstance(result, Forged):
                out.print(f"avatar        {result.avatar.resolve()}", highlight=False)
                out.print(f"before/after  {result.comparison.resolve()}", highlight=False)
    for failure in failures:
        tell_error(f"{failure.photo}: {failure.error}")
    if failures:
        raise typer.Exit(exit_code(failures[0].error))
    if not as_json:
        err.print(f"[bold green]Done[/] in {seconds:.1f} s.")


def _row(result: Forged | Failed) -> dict[str, Any]:
    if isinstance(result, Failed):
        code = getattr(result.error, "code", type(result.error).__name__)
        return {"photo": str(result.photo), "error": {"code": code, "message": str(result.error)}}
    return {
        "photo": str(result.photo),
        "avatar": str(result.avatar.resolve()),
        "beforeAfter": str(result.comparison.resolve()),
        "job": json.loads(result.job.json_bytes()),
    }
