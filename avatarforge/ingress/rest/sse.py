"""Streams of job updates as server-sent events.

The wire format is the HTML standard's: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import lru_cache
from typing import Any

import structlog
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from avatarforge.ingress.live.events import Changed, Erased, Overflowed, Progressed
from avatarforge.ingress.live.streams import Snapshot, StreamEvent
from avatarforge.messages import PUBLIC_PREFIX
from avatarforge.rest_messages import StreamErased, StreamOverflow

log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"
RECONNECT_MS = 1000
"""How long a browser waits before it comes back, in milliseconds."""
SEND_TIMEOUT_SECONDS = 30.0
"""After which a client that reads nothing is disconnected."""

_HEADERS = {
    "Cache-Control": "no-store",
    # Proxies such as nginx would otherwise keep events back until a buffer is full.
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = b":\n"
"""A comment without the blank line of an event: some clients take that for an event without data."""


async def event_stream(
    items: AsyncGenerator[StreamEvent | None, None],
    *,
    previews: bool = False,
    life: AbstractContextManager[None] | None = None,
) -> Response:
    """Answer with the events, or with 204 if none is to come: browsers then do not ask again.

    `life` is open as long as the stream is. Raises what the first item raises, so that it can still be
    answered as a problem.
    """
    try:
        first = await anext(items)
    except StopAsyncIteration:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return _EventStream(_encode(first, items, previews, life or nullcontext()), headers=_HEADERS)


class _EventStream(StreamingResponse):
    # Not FastAPI's own response: by its class FastAPI would take the encoding over, client by client.
    media_type = MEDIA_TYPE

    async def stream_response(self, send: Send) -> None:
        body: Any = self.body_iterator

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await send(message)

        async with aclosing(body):
            try:
                await super().stream_response(send_in_time)
            except TimeoutError:
                log.info("client of a stream takes nothing", seconds=SEND_TIMEOUT_SECONDS)


async def _encode(
    first: StreamEvent | None,
    items: AsyncGenerator[StreamEvent | None, None],
    previews: bool,
    life: AbstractContextManager[None],
) -> AsyncGenerator[bytes, None]:
    with life:
        async with aclosing(items):
            item, field = first, f"retry: {RECONNECT_MS}\n".encode()
            while True:
                if item is None:
                    yield _HEARTBEAT
                else:
                    # Within an event: alone it would be one without data, which some clients stumble over.
                    yield field + _encode_event(item, previews)
                    field = b""
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return


def _encode_event(item: StreamEvent, previews: bool) -> bytes:
    match item:
        case Snapshot(seq=seq, jobs=jobs, reset=reset):
            photos = b",".join(live.to_message().json_bytes() for live in jobs)
            data = f'{{"seq":{seq},"photos":[{photos.decode()}]}}'
            return format_sse_event(event="reset" if reset else "snapshot", data_str=data, id=str(seq))
        case Overflowed(seq=seq):
            overflow = StreamOverflow(seq=seq, detail=f"Too slow: resume with Last-Event-ID {seq}.")
            return format_sse_event(event="overflow", data_str=overflow.json_bytes().decode())
        case _:
            return _encode_shared(item, previews, PUBLIC_PREFIX.get())


@lru_cache(maxsize=256)
def _encode_shared(item: Changed | Erased | Progressed, previews: bool, _prefix: str) -> bytes:
    """Encode an event once for all clients that get it, one after the other, and come through one proxy."""
    match item:
        case Changed(seq=seq, live=live):
            return format_sse_event(
                event="status", data_str=live.to_message().json_bytes().decode(), id=str(seq)
            )
        case Erased(seq=seq, customer_id=customer_id, job_id=job_id):
            erased = StreamErased(job_id=job_id, customer_id=customer_id, seq=seq)
            return format_sse_event(event="erased", data_str=erased.json_bytes().decode(), id=str(seq))
        case Progressed():
            return format_sse_event(event="progress", data_str=_encode_progress(item, previews))


def _encode_progress(item: Progressed, previews: bool) -> str:
    message = item.live.to_message().json_bytes().decode()
    if not previews or item.preview is None:
        return message
    image = base64.b64encode(item.preview).decode()
    return f'{message[:-1]},"preview":"data:image/webp;base64,{image}","index":{item.index}}}'
