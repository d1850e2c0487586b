"""The client of a server that speaks AUTOMATIC1111's API."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import structlog

from avatarforge.diffusion.engine import EngineRequest
from avatarforge.diffusion.remote.messages import (
    PAUSE,
    RemotePicture,
    RemoteProgress,
    error_of,
    read_picture,
    read_progress,
    request_body,
)
from avatarforge.domain.errors import RemoteFailed, RemoteUnavailable
from avatarforge.settings import RemoteSettings, SettingsError

log = structlog.get_logger(__name__)

_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class RemoteServer:
    """Has pictures made, `concurrency` at a time; more wait. `close()` ends its connections."""

    CONNECT_SECONDS = 5.0
    ASIDE_SECONDS = 5.0
    """How long a question beside the picture may take: its progress, or to stop it."""
    POLL = 0.5
    """Seconds between two questions for progress."""
    MOST_ANSWER = 128 * 1024 * 1024
    """Bytes of an answer; a larger one is given up."""
    IDLE_SECONDS = 2.0
    """How long a connection is kept for the next call. uvicorn closes after five: a call that meets the
    closing would count as a failure."""

    def __init__(self, settings: RemoteSettings) -> None:
        """Raises `SettingsError` for certificates that cannot be read."""
        assert settings.url is not None, "only made where there is a server"
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._asked: dict[str, None] = {}
        """Ids of the tasks under way, first asked first: a server that makes one after the other is at the
        first."""
        password = settings.password
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            auth=None
            if settings.username is None or password is None
            else httpx.BasicAuth(settings.username, password.get_secret_value()),
            verify=True if settings.ca_file is None else _trusting(settings.ca_file),
            timeout=httpx.Timeout(settings.timeout, connect=self.CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=self.IDLE_SECONDS),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def picture(self, request: EngineRequest, tell: Callable[[int, int], None]) -> RemotePicture:
        """The picture. `tell` hears of steps done and of how many there are; cancelling stops the server.

        Raises `RemoteUnavailable` where the server has not begun, `RemoteFailed` where it broke off or
        took too long, and `RemoteRefused` for a request that it will never take.
        """
        async with self._slots:
            task_id = f"task({uuid4().hex})"
            body = await asyncio.to_thread(
                request_body, request, task_id, model=self._settings.model, sampler=self._settings.sampler
            )
            self._asked[task_id] = None
            asking = asyncio.create_task(self._ask(body), name="remote picture")
            try:
                async with asyncio.timeout(self._settings.timeout):
                    while not asking.done():
                        await asyncio.wait({asking}, timeout=self.POLL)
                        if not asking.done():
                            await self._poll(task_id, tell)
                return await asyncio.to_thread(read_picture, asking.result())
            except TimeoutError:
                raise RemoteFailed(f"no picture within {self._settings.timeout:g} seconds") from None
            finally:
                if not asking.done():
                    await self._stop(task_id)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                del self._asked[task_id]

    async def _ask(self, body: dict[str, Any]) -> bytes:
        """The body of the answer."""
        try:
            async with self._http.stream("POST", "/sdapi/v1/img2img", json=body) as response:
                content = await self._whole(response)
        except _UNREACHABLE as error:
            raise RemoteUnavailable(f"it cannot be reached ({_told(error)})", PAUSE) from error
        except httpx.HTTPError as error:
            raise RemoteFailed(f"the connection broke ({_told(error)})") from error
        if response.status_code != 200:
            raise error_of(response.status_code, response.headers, content)
        return content

    async def _whole(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > self.MOST_ANSWER:
                raise RemoteFailed(f"its answer is larger than {self.MOST_ANSWER} bytes")
        return bytes(content)

    # --- beside the picture ---------------------------------------------------------------------------

    async def _poll(self, task_id: str, tell: Callable[[int, int], None]) -> None:
        progress = await self._progress(task_id)
        if progress is not None and progress.total_steps and self._is_at(task_id, progress):
            tell(progress.step, progress.total_steps)

    async def _stop(self, task_id: str) -> None:
        if not self._settings.interrupt:
            return
        progress = await self._progress(task_id)
        if progress is not None and self._is_at(task_id, progress):
            await self._aside("POST", "/sdapi/v1/interrupt", {"id_task": task_id})

    def _is_at(self, task_id: str, progress: RemoteProgress) -> bool:
        """Whether the server works on this task. One that names no task makes one after the other."""
        if progress.task_id is not None:
            return progress.task_id == task_id
        return progress.busy and next(iter(self._asked)) == task_id

    async def _progress(self, task_id: str) -> RemoteProgress | None:
        # AUTOMATIC1111 overlooks `id_task`; AvatarForge tells that task's progress.
        query = {"skip_current_image": "true", "id_task": task_id}
        content = await self._aside("GET", "/sdapi/v1/progress", query)
        return None if content is None else read_progress(content)

    async def _aside(self, method: str, path: str, query: dict[str, str]) -> bytes | None:
        """The answer, if there is one: the picture does not depend on it."""
        with suppress(httpx.HTTPError, RemoteFailed, TimeoutError):
            async with (
                asyncio.timeout(self.ASIDE_SECONDS),
                self._http.stream(method, path, params=query) as response,
            ):
                return await self._whole(response) if response.status_code == 200 else None
        return None


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"The setting remote.ca_file is {str(ca_file)!r}: {error}.") from error


def _told(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
