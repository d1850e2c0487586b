"""The calls of AUTOMATIC1111's API. Each request is a job as any other, of one customer of its own."""

import asyncio
import base64
import binascii
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from io import BytesIO

from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from avatarforge.access.permissions import SDAPI_CONSTANTS, SDAPI_CUSTOMER
from avatarforge.domain.errors import (
    AvatarForgeError,
    IllegalTransition,
    JobNotFound,
    PhotoTooLarge,
    Unavailable,
)
from avatarforge.domain.jobs import ImageFormat, ProfilePhotoJob, StoredImage
from avatarforge.domain.status import ProcessingStatus
from avatarforge.imaging.provenance import open_content_credentials
from avatarforge.ingress.live.events import Overflowed, Progressed
from avatarforge.ingress.middleware.authentication import AuthScheme, parse_bearer
from avatarforge.ingress.problems import error_response
from avatarforge.ingress.sdapi.messages import (
    AUTOMATIC,
    Img2Img,
    SdapiError,
    WrongBody,
    check_options,
    img2img_response,
    list_samplers,
    model_response,
    progress_response,
)
from avatarforge.ingress.service import ImageKind, ProfilePhotoService
from avatarforge.ingress.upload.multipart import (
    acquire_upload_slot,
    drain,
    drain_unread,
    parse_content_length,
    until_silence,
)
from avatarforge.messages import LiveJob

CUSTOMER = SDAPI_CUSTOMER
"""The customer of these jobs."""
MAX_CHANGES = 100
"""Changes of a job that may wait to be read; after more the feed is joined anew."""
WAIT_SECONDS = 30.0
"""How long one wait for a job's end takes at most."""
_BESIDES_PHOTO = 1024 * 1024
"""Bytes of a body beside its image."""

Call = Callable[[Request], Awaitable[Response]]


def sdapi_routes(service: ProfilePhotoService) -> list[Route]:
    """Build the routes of the calls over the given service."""
    calls = _Calls(service)
    get = {
        "progress": calls.progress,
        "sd-models": calls.models,
        "options": calls.options,
        "samplers": calls.samplers,
        "schedulers": calls.schedulers,
        "loras": calls.loras,
        "prompt-styles": calls.styles,
        "memory": calls.memory,
        **{name: _answer_always(answer) for name, answer in SDAPI_CONSTANTS.items()},
    }
    post = {
        "img2img": calls.img2img,
        "txt2img": calls.txt2img,
        "interrupt": calls.interrupt,
        "options": calls.set_options,
        # Replicas read their manifests when they are told to, and at every start.
        **{f"refresh-{what}": _answer_always(None) for what in ("checkpoints", "loras", "vae")},
    }
    return [
        Route(f"/sdapi/v1/{name}", _handle_errors(call), methods=[method])
        for method, table in (("GET", get), ("POST", post))
        for name, call in table.items()
    ]


def parse_key(authorization: str) -> str | None:
    """Return the key of a bearer token, or the password of HTTP basic authentication under any name."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return parse_bearer(authorization)
    try:
        return base64.b64decode(text.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def _respond_to_error(error: AvatarForgeError, scope: Scope) -> Response:
    """Build the answer to an error in this API's shape."""
    retry_after = error_response(error, scope).headers.get("Retry-After")
    return _response(
        SdapiError.from_error(error), {} if retry_after is None else {"Retry-After": retry_after}
    )


SDAPI_SCHEME = AuthScheme("Basic", parse_key, _respond_to_error)


def _answer_always(answer: object) -> Call:
    async def answer_always(request: Request) -> Response:
        return JSONResponse(answer)

    return answer_always


def _handle_errors(call: Call) -> Call:
    """Wrap the call so that it answers errors in this API's shape."""

    @wraps(call)
    async def handle_errors(request: Request) -> Response:
        try:
            return await call(request)
        except AvatarForgeError as error:
            return _respond_to_error(error, request.scope)
        except WrongBody as error:
            return _response(SdapiError.from_error(error))

    return handle_errors


class _Calls:
    def __init__(self, service: ProfilePhotoService) -> None:
        self._service = service
        self._content_credentials = open_content_credentials(service.settings.provenance)
        self._tasks: dict[str, str] = {}
        """Job ids by the names that clients gave to jobs which are waited for here."""

    async def img2img(self, request: Request) -> Response:
        """Make images from another: a job, and its end."""
        body, live = await self._submit(request)
        with self._register_task(body.force_task_id, live.job.job_id):
            job, preview = await self._wait_for_end(live.job.job_id, request)
        if job.status not in (ProcessingStatus.DONE, ProcessingStatus.CANCELLED):
            return _response(SdapiError.from_job(job))
        manifest = await self._service.model.manifest()
        size = body.width or manifest.size, body.height or manifest.size
        if job.images:
            made = job.images[0].stored
            size = body.width or made.width, body.height or made.height
        files: list[bytes] = []
        if body.send_images:
            loads = (self._load(job.job_id, image.stored, size) for image in job.images)
            files = await asyncio.gather(*loads)
            if not files and preview is not None:
                # As AUTOMATIC1111 does, an interrupted image comes as far as it got.
                files = [await asyncio.to_thread(self._scale, preview, size)]
        return JSONResponse(await asyncio.to_thread(img2img_response, body, job, manifest, files, size))

    async def txt2img(self, request: Request) -> Response:
        """Refuse: every avatar begins with a photo."""
        await drain_unread(request.stream(), request.headers)
        return _response(SdapiError.not_implemented("Avatars are made from a photo: use img2img."))

    async def progress(self, request: Request) -> Response:
        """Tell how far the oldest running job is, or the one that `id_task` names."""
        task_id = request.query_params.get("id_task")
        live = self._oldest() if task_id is None else await self._find_task(task_id)
        if task_id is not None and live is not None and live.job.status is not ProcessingStatus.PROCESSING:
            live = None
        image = request.query_params.get("skip_current_image", "").lower() not in ("true", "1")
        return JSONResponse(progress_response(live, task_id if live is not None else None, image=image))

    async def interrupt(self, request: Request) -> Response:
        """Cancel the oldest running job, or the one that `id_task` names."""
        if (task_id := request.query_params.get("id_task")) is not None:
            live = await self._find_task(task_id)
        elif (live := self._oldest()) is not None and live.job.status is not ProcessingStatus.PROCESSING:
            live = None
        if live is not None:
            await self._cancel(live.job.job_id)
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        """List the model that is served: one at a time."""
        return JSONResponse([model_response(await self._service.model.manifest())])

    async def options(self, request: Request) -> Response:
        """Tell the settings that clients look for."""
        model = await self._service.model.manifest()
        return JSONResponse(
            {
                "sd_model_checkpoint": model.name,
                "sd_checkpoint_hash": "",
                "sd_vae": "None",
                "CLIP_stop_at_last_layers": 1,
                "samples_format": "png",
            }
        )

    async def set_options(self, request: Request) -> Response:
        """Accept options that change nothing, and the serving model's name. Raises `InvalidRequest`."""
        length = parse_content_length(request.headers)
        content = await _read_body(request, length, _BESIDES_PHOTO, _BESIDES_PHOTO)
        check_options(content, await self._service.model.manifest())
        return JSONResponse(None)

    async def samplers(self, request: Request) -> Response:
        """List the samplers that a request may ask for, the model's own first."""
        return JSONResponse(
            [
                {"name": sampler.name, "aliases": [], "options": {"scheduler": sampler.schedule.lower()}}
                for sampler in list_samplers(await self._service.model.manifest())
            ]
        )

    async def schedulers(self, request: Request) -> Response:
        """List the noise schedules of the samplers."""
        samplers = list_samplers(await self._service.model.manifest())
        labels = dict.fromkeys((AUTOMATIC, *(sampler.schedule for sampler in samplers)))
        schedule = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return JSONResponse([{"name": label.lower(), "label": label, **schedule} for label in labels])

    async def loras(self, request: Request) -> Response:
        """List the LoRA that are merged into the model."""
        names = [lora.file.stem for lora in (await self._service.model.manifest()).loras]
        return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])

    async def styles(self, request: Request) -> Response:
        """List the model's styles, whose prompts are templates here, too."""
        styles = (await self._service.model.manifest()).styles.items()
        return JSONResponse(
            [{"name": name, "prompt": style.prompt, "negative_prompt": ""} for name, style in styles]
        )

    async def memory(self, request: Request) -> Response:
        """Tell this machine's memory. GPUs are on the replicas' machines, which `GET /models` describes."""
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
        ram = {"free": free, "used": total - free, "total": total}
        return JSONResponse({"ram": ram, "cuda": {"error": "unavailable"}})

    # --- one job ------------------------------------------------------------------------------------

    async def _submit(self, request: Request) -> tuple[Img2Img, LiveJob]:
        """Submit a job for the request; returns its body, as a rule without the image, and the job."""
        length = parse_content_length(request.headers)
        async with acquire_upload_slot(self._service.upload_limit, request):
            max_bytes = self._service.settings.upload.max_bytes
            # Base64 makes four bytes of three.
            content = await _read_body(request, length, max_bytes * 4 // 3 + _BESIDES_PHOTO, max_bytes)
            body = await asyncio.to_thread(Img2Img.parse, content)
            photo = await asyncio.to_thread(body.decode_photo)
            submission = body.read_submission(await self._service.model.manifest())
            live = await self._service.submit_checked(CUSTOMER, submission, BytesIO(photo), "init_images[0]")
        # Many requests may wait for long: only those that want their image back keep it in memory.
        return (body if body.include_init_images else body.model_copy(update={"init_images": None})), live

    @contextmanager
    def _register_task(self, task_id: str | None, job_id: str) -> Iterator[None]:
        if task_id is None:
            yield
            return
        self._tasks[task_id] = job_id
        try:
            yield
        finally:
            self._tasks.pop(task_id, None)

    def _oldest(self) -> LiveJob | None:
        """Return the oldest running job, or the oldest of all where none runs."""
        jobs = self._service.live.list_unfinished(CUSTOMER)
        running = (live for live in jobs if live.job.status is ProcessingStatus.PROCESSING)
        return next(running, next(iter(jobs), None))

    async def _find_task(self, task_id: str) -> LiveJob | None:
        """Return the job of a client's task name, if it is waited for here."""
        job_id = self._tasks.get(task_id)
        return None if job_id is None else await self._service.status(CUSTOMER, job_id)

    async def _wait_for_end(self, job_id: str, request: Request) -> tuple[ProfilePhotoJob, bytes | None]:
        """Return the job once it is terminal, and its last preview. If the client goes away, the job is
        cancelled."""
        previews: deque[bytes] = deque(maxlen=1)
        ending = asyncio.create_task(self._poll_until_terminal(job_id), name="end of a job")
        leaving = asyncio.create_task(_wait_for_disconnect(request), name="client of a job")
        watching = asyncio.create_task(self._watch_previews(job_id, previews), name="previews of a job")
        try:
            await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                raise ClientDisconnect
            return ending.result(), next(iter(previews), None)
        finally:
            unfinished = not ending.done()
            tasks = (ending, leaving, watching)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if unfinished:
                await self._cancel(job_id)

    async def _poll_until_terminal(self, job_id: str) -> ProfilePhotoJob:
        while True:
            live = await self._service.status(CUSTOMER, job_id, WAIT_SECONDS)
            if live.job.status.is_terminal:
                return live.job

    async def _watch_previews(self, job_id: str, previews: deque[bytes]) -> None:
        """Add the job's previews as they come. Whichever replica interrupts it, the last one is here."""
        while True:
            with self._service.live.subscribe(CUSTOMER, job_id, MAX_CHANGES) as subscription:
                while not isinstance(event := await subscription.next(WAIT_SECONDS, 0), Overflowed):
                    if isinstance(event, Progressed) and event.preview is not None:
                        previews.append(event.preview)

    async def _cancel(self, job_id: str) -> None:
        """Cancel the job unless it has ended. If its tracker is away it goes on, and nobody waits for it."""
        with suppress(IllegalTransition, JobNotFound, Unavailable):
            await self._service.cancel(CUSTOMER, job_id)

    async def _load(self, job_id: str, image: StoredImage, size: tuple[int, int]) -> bytes:
        """Return the image as a PNG file, scaled where another size was asked for."""
        chunks = await self._service.stream_image(job_id, ImageKind.GENERATED, image)
        content = await self._service.read(b"".join, chunks)
        if size == (image.width, image.height):
            return content
        return await asyncio.to_thread(self._scale, content, size)

    def _scale(self, content: bytes, size: tuple[int, int]) -> bytes:
        with Image.open(BytesIO(content)) as image:
            scaled = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        return self._content_credentials.encode(scaled, ImageFormat.PNG)


async def _read_body(request: Request, announced: int | None, max_bytes: int, max_photo_bytes: int) -> bytes:
    """Read the whole body. Raises `PhotoTooLarge`, and `MalformedUpload` when the client falls silent."""
    stream = request.stream()
    if announced is not None and announced > max_bytes:
        await drain_unread(stream, request.headers)
        raise PhotoTooLarge(max_photo_bytes)
    body = bytearray()
    async with until_silence() as heard:
        async for chunk in stream:
            heard()
            body += chunk
            if len(body) > max_bytes:
                break
    if len(body) > max_bytes:
        await drain(stream, announced)
        raise PhotoTooLarge(max_photo_bytes)
    return bytes(body)


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client goes away. The body has been read to its end before."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _response(error: SdapiError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(dict(error.body), error.status, headers)
