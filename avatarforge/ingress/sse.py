"""Streams of job updates as server-sent events.

The wire format is the HTML standard's: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import lru_cache
from typing import Any

import structlog
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from avatarforge.ingress.news import Changed, Erased, Overflowed, Progressed
from avatarforge.ingress.schemas import status_message
from avatarforge.ingress.streams import Snapshot, StreamItem

log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"
RECONNECT_MS = 1000
"""How long a browser waits before it comes back, in milliseconds."""
MOST_SEND_SECONDS = 30.0
"""How long a client may take nothing of what is sent before it is given up."""

_HEADERS = {
    "Cache-Control": "no-store",
    # Proxies such as nginx would otherwise keep events back until a buffer is full.
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = format_sse_event(comment="")


async def event_stream(
    items: AsyncGenerator[StreamItem | None, None],
    *,
    previews: bool = False,
    life: AbstractContextManager[None] | None = None,
) -> Response:
    """The items as a response, or 204 if nothing is to come: browsers then do not ask again.

    `life` is open as long as the stream is. Raises what the first item raises, so that it can still be
    answered as a problem.
    """
    try:
        first = await anext(items)
    except StopAsyncIteration:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return _EventStream(_written(first, items, previews, life or nullcontext()), headers=_HEADERS)


class _EventStream(StreamingResponse):
    # Not FastAPI's own response: by its class FastAPI would take the encoding over, client by client.
    media_type = MEDIA_TYPE

    async def stream_response(self, send: Send) -> None:
        body: Any = self.body_iterator

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(MOST_SEND_SECONDS):
                await send(message)

        async with aclosing(body):
            try:
                await super().stream_response(send_in_time)
            except TimeoutError:
                log.info("client of a stream takes nothing", seconds=MOST_SEND_SECONDS)


async def _written(
    first: StreamItem | None,
    items: AsyncGenerator[StreamItem | None, None],
    previews: bool,
    life: AbstractContextManager[None],
) -> AsyncGenerator[bytes, None]:
    with life:
        async with aclosing(items):
            yield format_sse_event(retry=RECONNECT_MS) + _event(first, previews)
            async for item in items:
                yield _event(item, previews)


def _event(item: StreamItem | None, previews: bool) -> bytes:
    """The item on the wire."""
    match item:
        case None:
            return _HEARTBEAT
        case Snapshot(seq=seq, jobs=jobs, reset=reset):
            photos = b",".join(status_message(live).json_bytes() for live in jobs)
            data = f'{{"seq":{seq},"photos":[{photos.decode()}]}}'
            return format_sse_event(event="reset" if reset else "snapshot", data_str=data, id=str(seq))
        case Overflowed(seq=seq):
            data = json.dumps({"seq": seq, "detail": f"Too slow: resume with Last-Event-ID {seq}."})
            return format_sse_event(event="overflow", data_str=data)
        case _:
            return _news(item, previews)


@lru_cache(maxsize=256)
def _news(item: Changed | Erased | Progressed, previews: bool) -> bytes:
    """Made once for all clients that are told of it, one after the other."""
    match item:
        case Changed(seq=seq, live=live):
            return format_sse_event(
                event="status", data_str=status_message(live).json_bytes().decode(), id=str(seq)
            )
        case Erased(seq=seq, customer_id=customer_id, job_id=job_id):
            data = json.dumps({"jobId": job_id, "customerId": customer_id, "seq": seq})
            return format_sse_event(event="erased", data_str=data, id=str(seq))
        case Progressed():
            return format_sse_event(event="progress", data_str=_progress(item, previews))


def _progress(item: Progressed, previews: bool) -> str:
    message = status_message(item.live).json_bytes().decode()
    if not previews or item.preview is None:
        return message
    picture = base64.b64encode(item.preview).decode()
    return f'{message[:-1]},"preview":"data:image/webp;base64,{picture}"}}'
