"""A receiver of webhooks: a real HTTP server on this machine whose answers the test writes."""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from standardwebhooks import Webhook


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """The message, if its signature is one of this secret. Raises `WebhookVerificationError`."""
        message: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return message


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    """An answer with this status. Headers are written with underscores."""

    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return write


def raw(*pieces: bytes, pause: float = 0, repeat: bool = False) -> Answer:
    """These bytes as they are, piece by piece; with `repeat` for as long as the client takes them."""

    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        while True:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not repeat:
                return

    return write


async def hang(received: Received, writer: asyncio.StreamWriter) -> None:
    """Never an answer; ends when the client goes away."""
    await received.reader.read()
    writer.close()


async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
    """The connection ends without an answer."""
    writer.close()


OK = answer(200, b"thank you")


@dataclass(eq=False)
class Receiver:
    """Each request takes the next of `next_answers`, and `answer` once there is none."""

    answer: Answer = OK
    next_answers: deque[Answer] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    """Connections made so far."""
    live: int = 0
    """Connections that have not ended."""
    open: int = 0
    """Requests that are being answered."""
    most_open: int = 0
    port: int = 0
    host: str = "127.0.0.1"
    scheme: str = "http"

    def url(self, path: str = "/hook") -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{path}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The bodies."""
        return [json.loads(received.body) for received in self.received]

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        """Listen on a free port."""
        self.scheme = "https" if tls else "http"
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.create_task(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, self.host, self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.live += 1
        try:
            while not writer.is_closing():
                received = await _request(reader)
                self.received.append(received)
                answering = self.next_answers.popleft() if self.next_answers else self.answer
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    await answering(received, writer)
                finally:
                    self.open -= 1
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            # The client has gone.
            return
        finally:
            self.live -= 1
            writer.transport.abort()


async def _request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method=method, target=target, headers=headers, body=body, reader=reader)
