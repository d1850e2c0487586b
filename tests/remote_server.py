"""A server that speaks AUTOMATIC1111's API over real sockets: one picture after the other, its shapes of
answers and errors, and slowness and faults where a test wants them.
"""

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.waiting import wait_until

Answer = Callable[[Request], Awaitable[Response]]

MODEL = "v1-5-pruned-emaonly"


class RemoteServerTwin:
    """What `stable-diffusion-webui --api` does. Requests take the next of `next_answers`, then pictures."""

    def __init__(self) -> None:
        self.step_seconds = 0.0
        self.password: str | None = None
        """Of the user `api`, where one is asked for."""
        self.next_answers: deque[Answer] = deque()
        self.requests: list[dict[str, Any]] = []
        """Bodies of img2img."""
        self.interrupts = 0
        self.made = 0
        self._one_at_a_time = asyncio.Lock()
        self._interrupted = False
        self._state = {"sampling_step": 0, "sampling_steps": 0, "job_count": 0, "job": ""}

    @property
    def busy(self) -> bool:
        return self._state["job_count"] != 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/sdapi/v1/img2img", self._img2img, methods=["POST"]),
                Route("/sdapi/v1/progress", self._progress),
                Route("/sdapi/v1/interrupt", self._interrupt, methods=["POST"]),
            ]
        )

    async def _img2img(self, request: Request) -> Response:
        if (refusal := self._unauthorised(request)) is not None:
            return refusal
        body = await request.json()
        self.requests.append(body)
        if self.next_answers:
            return await self.next_answers.popleft()(request)
        if not isinstance(body.get("steps", 50), int):
            return unprocessable("steps", "value is not a valid integer")
        if body.get("init_images") is None:
            return http_exception(404, "Init image not found")
        if body.get("sampler_name") not in (None, "Euler", "Euler a"):
            return http_exception(400, "Sampler not found")
        async with self._one_at_a_time:
            return await self._picture(body)

    async def _picture(self, body: dict[str, Any]) -> Response:
        steps = int(body["steps"] * body["denoising_strength"])
        self._interrupted = False
        self._state |= {"sampling_steps": steps, "job_count": 1, "job": "scripts_img2img"}
        try:
            for step in range(steps):
                if self._interrupted:
                    break
                self._state["sampling_step"] = step
                await asyncio.sleep(self.step_seconds)
        finally:
            self._state |= {"sampling_step": 0, "sampling_steps": 0, "job_count": 0, "job": ""}
        self.made += 1
        return JSONResponse(
            {"images": [made_of(body)], "parameters": body | {"init_images": None}, "info": info_of(body)}
        )

    async def _progress(self, request: Request) -> Response:
        if (refusal := self._unauthorised(request)) is not None:
            return refusal
        state = {
            "skipped": False,
            "interrupted": self._interrupted,
            "stopping_generation": False,
            "job_timestamp": "20261123101500",
            "job_no": 0,
            **self._state,
        }
        return JSONResponse(
            {
                "progress": 0.01 if self.busy else 0,
                "eta_relative": 0,
                "state": state,
                "current_image": None,
                "textinfo": None,
            }
        )

    async def _interrupt(self, request: Request) -> Response:
        self._interrupted = True
        self.interrupts += 1
        return JSONResponse({})

    def _unauthorised(self, request: Request) -> Response | None:
        if self.password is None:
            return None
        given = request.headers.get("authorization", "")
        if not given:
            return JSONResponse({"detail": "Not authenticated"}, 401, {"WWW-Authenticate": "Basic"})
        if given != "Basic " + base64.b64encode(f"api:{self.password}".encode()).decode():
            return http_exception(401, "Incorrect username or password")
        return None


def made_of(body: dict[str, Any]) -> str:
    """The picture for a request: its negative, in base64."""
    with Image.open(BytesIO(base64.b64decode(body["init_images"][0]))) as image:
        buffer = BytesIO()
        ImageOps.invert(image.convert("RGB")).resize((body["width"], body["height"])).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def info_of(body: dict[str, Any]) -> str:
    return json.dumps(
        {"prompt": body["prompt"], "seed": body["seed"], "sd_model_name": MODEL, "infotexts": []}
    )


# --- errors as the real ones look ------------------------------------------------------------------------


def http_exception(status: int, detail: str) -> Response:
    """What `modules/api/api.py` makes of FastAPI's HTTPException."""
    return JSONResponse({"error": "HTTPException", "detail": detail, "body": "", "errors": ""}, status)


def unprocessable(field: str, message: str) -> Response:
    """FastAPI's own answer for a body of a wrong type."""
    return JSONResponse({"detail": [{"loc": ["body", field], "msg": message, "type": "type_error"}]}, 422)


def answering(response: Response) -> Answer:
    async def answer(request: Request) -> Response:
        return response

    return answer


def out_of_memory() -> Answer:
    return answering(
        JSONResponse(
            {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": "CUDA out of memory."}, 500
        )
    )


def proxy_page(status: int) -> Answer:
    """A reverse proxy's own page."""
    page = f"<html>\r\n<head><title>{status} Bad Gateway</title></head><body>nginx</body></html>"
    return answering(HTMLResponse(page, status))


async def cut(request: Request) -> Response:
    """Half an answer, then the connection is closed."""
    return _Cut()


class _Cut(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"images": ["', "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def never(request: Request) -> Response:
    """No answer, until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    return Response()


# --- sockets -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(app: Any, *, certificate: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
    """The application's address on 127.0.0.1 while the context is open. `certificate` has its key beside."""
    tls = {} if certificate is None else {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1, **tls)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http{'s' if certificate else ''}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def remote_server() -> AsyncIterator[tuple[RemoteServerTwin, str]]:
    """A running server and its address."""
    twin = RemoteServerTwin()
    async with serving(twin.app()) as url:
        yield twin, url
