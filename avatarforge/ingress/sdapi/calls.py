"""The calls of AUTOMATIC1111's API. Each picture is a job as any other, of one customer of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from io import BytesIO

from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from avatarforge.access.rules import SDAPI_CUSTOMER
from avatarforge.diffusion.provenance import open_marking
from avatarforge.domain.errors import (
    AvatarForgeError,
    IllegalTransition,
    JobNotFound,
    PhotoTooLarge,
    Unavailable,
)
from avatarforge.domain.jobs import ImageFormat, ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.ingress.news import LiveJob
from avatarforge.ingress.sdapi.messages import (
    Img2Img,
    Refusal,
    WrongBody,
    model_answer,
    picture_answer,
    progress_answer,
)
from avatarforge.ingress.service import ImageKind, ProfilePhotos
from avatarforge.ingress.uploads import announced_length, drain, until_silence, upload_place

CUSTOMER = SDAPI_CUSTOMER
"""Whose jobs they are."""
WAIT_SECONDS = 30.0
"""How long the view is asked to wait at a time for a job's end."""
_BESIDES_PHOTO = 1024 * 1024
"""Bytes of a body beside its picture."""

Call = Callable[[Request], Awaitable[Response]]


def sdapi_routes(photos: ProfilePhotos) -> list[Route]:
    """The calls over the given service."""
    calls = _Calls(photos)
    return [
        Route("/sdapi/v1/img2img", _refusing(calls.img2img), methods=["POST"]),
        Route("/sdapi/v1/progress", _refusing(calls.progress), methods=["GET"]),
        Route("/sdapi/v1/interrupt", _refusing(calls.interrupt), methods=["POST"]),
        Route("/sdapi/v1/sd-models", _refusing(calls.models), methods=["GET"]),
        Route("/sdapi/v1/options", _refusing(calls.options), methods=["GET"]),
    ]


def _refusing(call: Call) -> Call:
    """The call with errors in this API's shape."""

    @wraps(call)
    async def refusing(request: Request) -> Response:
        try:
            return await call(request)
        except (AvatarForgeError, WrongBody) as error:
            seconds = getattr(error, "retry_after", None)
            return _answer(Refusal.of(error), {} if seconds is None else {"Retry-After": str(seconds)})

    return refusing


class _Calls:
    def __init__(self, photos: ProfilePhotos) -> None:
        self._photos = photos
        self._marking = open_marking(photos.settings.provenance)
        self._tasks: dict[str, str] = {}
        """Clients' names for pictures that are waited for here, to the jobs' ids."""

    async def img2img(self, request: Request) -> Response:
        """A picture from another: a job, and its end."""
        wish, live = await self._submitted(request)
        with self._named(wish.force_task_id, live.job.job_id):
            job = await self._end_of(live.job.job_id, request)
        if job.outcome is None:
            return _answer(Refusal.of_job(job))
        picture = await self._picture(job, wish.width)
        side = wish.width or job.outcome.avatar.width
        return JSONResponse(await asyncio.to_thread(picture_answer, wish, job, picture, side))

    async def progress(self, request: Request) -> Response:
        """How far the oldest running picture is, or the one that `id_task` names."""
        task_id = request.query_params.get("id_task")
        live = self._oldest() if task_id is None else await self._task(task_id)
        if task_id is not None and live is not None and live.job.status is not ProcessingStatus.PROCESSING:
            live = None
        image = request.query_params.get("skip_current_image", "").lower() not in ("true", "1")
        return JSONResponse(progress_answer(live, task_id if live is not None else None, image=image))

    async def interrupt(self, request: Request) -> Response:
        """End the oldest running picture, or the one that `id_task` names."""
        if (task_id := request.query_params.get("id_task")) is not None:
            live = await self._task(task_id)
        elif (live := self._oldest()) is not None and live.job.status is not ProcessingStatus.PROCESSING:
            live = None
        if live is not None:
            await self._cancel(live.job.job_id)
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        """The model that serves: one at a time."""
        return JSONResponse([model_answer(await self._photos.model.manifest())])

    async def options(self, request: Request) -> Response:
        """The settings that clients look for."""
        model = await self._photos.model.manifest()
        return JSONResponse({"sd_model_checkpoint": model.name, "samples_format": "png"})

    # --- one picture ----------------------------------------------------------------------------------

    async def _submitted(self, request: Request) -> tuple[Img2Img, LiveJob]:
        """What was asked for, without its picture, and the job for it."""
        length = announced_length(request.headers)
        async with upload_place(self._photos.uploads, request.stream(), length):
            largest = self._photos.settings.upload.max_bytes
            # Base64 makes four bytes of three.
            body = await _body(request, length, largest * 4 // 3 + _BESIDES_PHOTO, largest)
            wish = await asyncio.to_thread(Img2Img.parsed, body)
            photo = await asyncio.to_thread(wish.photo)
            submission = wish.submission(await self._photos.model.manifest())
            live = await self._photos.submit_checked(CUSTOMER, submission, BytesIO(photo), "init_images[0]")
        # Many may wait for long: only who wants the picture back keeps it so long.
        return (wish if wish.include_init_images else wish.model_copy(update={"init_images": None})), live

    @contextmanager
    def _named(self, task_id: str | None, job_id: str) -> Iterator[None]:
        if task_id is None:
            yield
            return
        self._tasks[task_id] = job_id
        try:
            yield
        finally:
            self._tasks.pop(task_id, None)

    def _oldest(self) -> LiveJob | None:
        """The oldest picture that runs; the oldest of all where none does."""
        jobs = self._photos.unfinished(CUSTOMER)
        running = (live for live in jobs if live.job.status is ProcessingStatus.PROCESSING)
        return next(running, next(iter(jobs), None))

    async def _task(self, task_id: str) -> LiveJob | None:
        """The picture that a client's name stands for, if it is waited for here."""
        job_id = self._tasks.get(task_id)
        return None if job_id is None else await self._photos.status(CUSTOMER, job_id)

    async def _end_of(self, job_id: str, request: Request) -> ProfilePhotoJob:
        """The job once it is terminal. A client that goes away ends it."""
        ending = asyncio.create_task(self._ended(job_id), name="end of a picture")
        leaving = asyncio.create_task(_left(request), name="client of a picture")
        try:
            await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                raise ClientDisconnect
            return ending.result()
        finally:
            unfinished = not ending.done()
            for task in (ending, leaving):
                task.cancel()
            await asyncio.gather(ending, leaving, return_exceptions=True)
            if unfinished:
                await self._cancel(job_id)

    async def _ended(self, job_id: str) -> ProfilePhotoJob:
        while True:
            live = await self._photos.status(CUSTOMER, job_id, WAIT_SECONDS)
            if live.job.status.is_terminal:
                return live.job

    async def _cancel(self, job_id: str) -> None:
        """End the job unless it has ended; its tracker being away, it goes on and nobody waits for it."""
        with suppress(IllegalTransition, JobNotFound, Unavailable):
            await self._photos.cancel(CUSTOMER, job_id)

    async def _picture(self, job: ProfilePhotoJob, side: int | None) -> bytes:
        """The avatar as a PNG file, scaled where another size was asked for."""
        image = await self._photos.image(CUSTOMER, job.job_id, ImageKind.GENERATED)
        chunks = await self._photos.chunks(job.job_id, ImageKind.GENERATED, image)
        content = await self._photos.read(b"".join, chunks)
        if side is None or side == image.width:
            return content
        return await asyncio.to_thread(self._scaled, content, side)

    def _scaled(self, content: bytes, side: int) -> bytes:
        with Image.open(BytesIO(content)) as image:
            scaled = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        return self._marking.file(scaled, ImageFormat.PNG)


async def _body(request: Request, announced: int | None, most: int, largest_photo: int) -> bytes:
    """The whole body. Raises `PhotoTooLarge`, and `MalformedUpload` when the client falls silent."""
    stream = request.stream()
    if announced is not None and announced > most:
        await drain(stream, announced)
        raise PhotoTooLarge(largest_photo)
    body = bytearray()
    async with until_silence() as heard:
        async for chunk in stream:
            heard()
            body += chunk
            if len(body) > most:
                break
    if len(body) > most:
        await drain(stream, announced)
        raise PhotoTooLarge(largest_photo)
    return bytes(body)


async def _left(request: Request) -> None:
    """Return when the client goes away. The body has been read to its end before."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _answer(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(dict(refusal.body), refusal.status, headers)
