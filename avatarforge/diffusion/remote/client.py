"""The client of a server that speaks AUTOMATIC1111's API."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import structlog

from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.remote.messages import (
    DEFAULT_RETRY_SECONDS,
    RemoteImage,
    RemoteProgress,
    build_request_body,
    create_error,
    read_image,
    read_progress,
)
from avatarforge.domain.errors import RemoteFailed, RemoteUnavailable
from avatarforge.settings import RemoteSettings, load_ca_file

log = structlog.get_logger(__name__)

_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class RemoteServer:
    """Has images generated, `concurrency` at a time; more wait. `close()` ends its connections."""

    CONNECT_TIMEOUT_SECONDS = 5.0
    QUERY_TIMEOUT_SECONDS = 5.0
    """For the calls beside the image: its progress, and to interrupt it."""
    POLL_INTERVAL_SECONDS = 0.5
    """Between two calls for progress."""
    MAX_RESPONSE_BYTES = 128 * 1024 * 1024
    KEEPALIVE_SECONDS = 2.0
    """How long a connection is kept for the next call. uvicorn closes after five: a call that meets the
    closing would count as a failure."""

    def __init__(self, settings: RemoteSettings) -> None:
        """Create the HTTP client. Raises `SettingsError` for certificates that cannot be read."""
        assert settings.url is not None, "only made where there is a server"
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._active: dict[str, None] = {}
        """Ids of the active tasks, oldest first: a server that runs one after the other is at the first."""
        password = settings.password
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            auth=None
            if settings.username is None or password is None
            else httpx.BasicAuth(settings.username, password.get_secret_value()),
            verify=True if settings.ca_file is None else load_ca_file(settings.ca_file, "remote.ca_file"),
            timeout=httpx.Timeout(settings.timeout, connect=self.CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=self.KEEPALIVE_SECONDS),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def generate(
        self, request: EngineRequest, on_step: Callable[[int, int], None], *, edits: bool = False
    ) -> RemoteImage:
        """Have an image generated. `on_step` gets the steps done and their total; cancelling interrupts the
        server. `edits`: the request is meant for a model that has an image guidance.

        Raises `RemoteUnavailable` if the server has not begun, `RemoteFailed` if it broke off or took too
        long, and `RemoteRefused` for a request that it will never take.
        """
        async with self._slots:
            task_id = f"task({uuid4().hex})"
            body = await asyncio.to_thread(
                build_request_body,
                request,
                task_id,
                model=self._settings.model,
                sampler=self._settings.sampler,
                edits=edits,
            )
            self._active[task_id] = None
            call = asyncio.create_task(self._post(body), name="remote image")
            try:
                async with asyncio.timeout(self._settings.timeout):
                    while not call.done():
                        await asyncio.wait({call}, timeout=self.POLL_INTERVAL_SECONDS)
                        if not call.done():
                            await self._poll(task_id, on_step)
                return await asyncio.to_thread(read_image, call.result())
            except TimeoutError:
                raise RemoteFailed(f"no image within {self._settings.timeout:g} seconds") from None
            finally:
                if not call.done():
                    await self._interrupt(task_id)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                del self._active[task_id]

    async def _post(self, body: dict[str, Any]) -> bytes:
        try:
            async with self._http.stream("POST", "/sdapi/v1/img2img", json=body) as response:
                content = await self._read_body(response)
        except _UNREACHABLE as error:
            raise RemoteUnavailable(
                f"it cannot be reached ({_format_error(error)})", DEFAULT_RETRY_SECONDS
            ) from error
        except httpx.HTTPError as error:
            raise RemoteFailed(f"the connection broke ({_format_error(error)})") from error
        if response.status_code != 200:
            raise create_error(response.status_code, response.headers, content)
        return content

    async def _read_body(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > self.MAX_RESPONSE_BYTES:
                raise RemoteFailed(f"its response is larger than {self.MAX_RESPONSE_BYTES} bytes")
        return bytes(content)

    # --- beside the image -----------------------------------------------------------------------------

    async def _poll(self, task_id: str, on_step: Callable[[int, int], None]) -> None:
        progress = await self._fetch_progress(task_id)
        if progress is not None and progress.total_steps and self._is_at(task_id, progress):
            on_step(progress.step, progress.total_steps)

    async def _interrupt(self, task_id: str) -> None:
        if not self._settings.interrupt:
            return
        progress = await self._fetch_progress(task_id)
        if progress is not None and self._is_at(task_id, progress):
            await self._query("POST", "/sdapi/v1/interrupt", {"id_task": task_id})

    def _is_at(self, task_id: str, progress: RemoteProgress) -> bool:
        """Return whether the server works on this task. One that names no task runs one after the other."""
        if progress.task_id is not None:
            return progress.task_id == task_id
        return progress.busy and next(iter(self._active)) == task_id

    async def _fetch_progress(self, task_id: str) -> RemoteProgress | None:
        # AUTOMATIC1111 ignores `id_task`; AvatarForge returns that task's progress.
        query = {"skip_current_image": "true", "id_task": task_id}
        content = await self._query("GET", "/sdapi/v1/progress", query)
        return None if content is None else read_progress(content)

    async def _query(self, method: str, path: str, query: dict[str, str]) -> bytes | None:
        """Return the response's body, if there is one: the image does not depend on it."""
        with suppress(httpx.HTTPError, RemoteFailed, TimeoutError):
            async with (
                asyncio.timeout(self.QUERY_TIMEOUT_SECONDS),
                self._http.stream(method, path, params=query) as response,
            ):
                return await self._read_body(response) if response.status_code == 200 else None
        return None


def _format_error(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
