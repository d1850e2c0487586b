"""Many clients of server-sent events in one thread: it shares the cores with the server."""

import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What a client received."""

    client: int
    at: float
    """Seconds since the epoch."""
    kind: str
    """`comment` for a heartbeat."""
    id: int | None
    data: str

    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.data)
        return document


class EventStreams:
    """Opens one stream for each path and collects what comes, until the `with` block ends."""

    def __init__(self, url: str, paths: Sequence[str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._paths = paths
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._read_forever, name="event streams", daemon=True)
        self._sockets: list[socket.socket] = []
        self._stopping = False
        self.events: list[Event] = []
        """Everything, in the order in which it came. Appended to by the reading thread only."""
        self.closed: set[int] = set()
        """Clients whose stream the server has ended."""

    def __enter__(self) -> Self:
        for number, path in enumerate(self._paths):
            connection = socket.create_connection(self._address, timeout=30)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.setblocking(False)
            self._sockets.append(connection)
            self._selector.register(connection, selectors.EVENT_READ, _Reader(number))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()
        for connection in self._sockets:
            connection.close()
        self._selector.close()

    def wait_for(self, number: int, kinds: Sequence[str], seconds: float) -> list[Event]:
        """The first `number` events of these kinds. Raises `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [event for event in self.events if event.kind in kinds]
            if len(found) >= number:
                return found[:number]
            time.sleep(0.05)
        raise TimeoutError(f"{len(found)} of {number} events ({', '.join(kinds)}) came in {seconds:g} s")

    def _read_forever(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.1):
                reader, connection = key.data, key.fileobj
                assert isinstance(connection, socket.socket), "what was registered"
                try:
                    data = connection.recv(65536)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    data = b""
                if not data:
                    self._selector.unregister(connection)
                    self.closed.add(reader.client)
                self.events.extend(reader.read(data, time.time()))


class _Reader:
    """Cuts one stream into its events. The server sends each as one chunk (RFC 9112, section 7.1)."""

    def __init__(self, client: int) -> None:
        self.client = client
        self._buffer = b""

    def read(self, data: bytes, at: float) -> list[Event]:
        self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\n\r\n")
        return [self._event(part.decode(), at) for part in whole if not part.startswith(b"HTTP/")]

    def _event(self, text: str, at: float) -> Event:
        fields = dict(line.split(": ", 1) for line in text.split("\n") if ": " in line)
        number = fields.get("id")
        return Event(
            client=self.client,
            at=at,
            kind=fields.get("event", "comment").strip(),
            id=None if number is None else int(number),
            data=fields.get("data", ""),
        )
