"""A lean HTTP client: it shares the cores with the server, so it does as little as it can.

One thread, non-blocking sockets, bodies made beforehand, keep-alive. No TLS, no chunked answers.
"""

import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = b"9b1f0c6d2e7a4c35"
SILENCE = 120.0
"""Seconds without any answer after which a benchmark gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer and the seconds from the request's first byte to the answer's last."""

    status: int
    body: bytes
    seconds: float

    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """All answers, in the order in which they came."""

    replies: list[Reply]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.replies) / self.seconds

    @property
    def latencies(self) -> list[float]:
        return [reply.seconds for reply in self.replies]

    def expect(self, status: int) -> "Load":
        """Itself, if every answer has this status: an error that is answered quickly is no success."""
        others = Counter(reply.status for reply in self.replies if reply.status != status)
        if others:
            example = next(reply for reply in self.replies if reply.status != status)
            raise RuntimeError(f"Answers other than {status}: {dict(others)}, such as {example.body[:500]!r}")
        return self


def upload(path: str, photo: bytes, media_type: str, fields: Mapping[str, object] | None = None) -> bytes:
    """A whole multipart request: `photo` as the file of that name, `fields` beside it."""
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), str(value).encode())
        for name, value in (fields or {}).items()
    ]
    parts.append(
        b'--%b\r\nContent-Disposition: form-data; name="photo"; filename="photo"\r\n'
        b"Content-Type: %b\r\n\r\n%b\r\n" % (BOUNDARY, media_type.encode(), photo)
    )
    body = b"".join(parts) + b"--%b--\r\n" % BOUNDARY
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def send(url: str, requests: Iterator[bytes], clients: int) -> Load:
    """Send all requests over `clients` connections, each with one request under way at a time.

    Raises `ConnectionError` when the server closes a connection, `TimeoutError` when it falls silent.
    """
    address = (urlsplit(url).hostname, urlsplit(url).port)
    connections = [_Connection(address) for _ in range(clients)]
    replies: list[Reply] = []
    with selectors.DefaultSelector() as selector:
        try:
            begun = time.perf_counter()
            busy = sum(_next(connection, requests, selector) for connection in connections)
            while busy:
                events = selector.select(SILENCE)
                if not events:
                    raise TimeoutError(f"{busy} requests had no answer for {SILENCE:g} s")
                for key, _ in events:
                    connection = key.data
                    reply = connection.go_on(selector)
                    if reply is not None:
                        replies.append(reply)
                        busy -= not _next(connection, requests, selector)
            return Load(replies=replies, seconds=time.perf_counter() - begun)
        finally:
            for connection in connections:
                connection.socket.close()


def ask(url: str, request: bytes) -> Reply:
    """The answer to one request."""
    return send(url, iter([request]), 1).replies[0]


def _next(connection: "_Connection", requests: Iterator[bytes], selector: selectors.BaseSelector) -> bool:
    """Send the next request; false when there is none."""
    request = next(requests, None)
    if request is None:
        return False
    connection.begin(request, selector)
    return True


class _Connection:
    def __init__(self, address: tuple[str | None, int | None]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Room for a whole photo, so that sending takes one call.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
        self.socket.setblocking(False)
        self._unsent = memoryview(b"")
        self._received = b""
        self._begun = 0.0
        self._events = 0

    def begin(self, request: bytes, selector: selectors.BaseSelector) -> None:
        self._unsent = memoryview(request)
        self._received = b""
        self._begun = time.perf_counter()
        self._write()
        self._listen(selector)

    def go_on(self, selector: selectors.BaseSelector) -> Reply | None:
        """Write and read what can be; the answer, once it is whole."""
        if self._unsent:
            self._write()
            self._listen(selector)
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._received[:200]!r}")
        self._received += data
        return self._reply()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return

    def _listen(self, selector: selectors.BaseSelector) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if wanted == self._events:
            return
        if self._events:
            selector.modify(self.socket, wanted, self)
        else:
            selector.register(self.socket, wanted, self)
        self._events = wanted

    def _reply(self) -> Reply | None:
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return None
        seconds = time.perf_counter() - self._begun
        return Reply(status=int(head[9:12]), body=body, seconds=seconds)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise RuntimeError(f"an answer without Content-Length: {head!r}")
