"""A TCP proxy on loopback that can fall silent or cut its connections, as networks do."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class TcpProxy:
    """Passes bytes between its own `port` and a server's. Use it as a context manager."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._trap: bytes | None = None
        self.cuts = 0
        """Connections that were cut by a trap."""
        self._thread = threading.Thread(target=self._accept_forever, name="tcp proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for link in self._taken_links():
            link.cut()

    def cut_at(self, words: bytes) -> None:
        """Cut the next connection whose client sends `words`: the server hears them, their answer is lost."""
        with self._lock:
            self._trap = words

    def _accept_forever(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            for work in (self._ask, self._answer):
                threading.Thread(target=work, args=(link,), name="tcp link", daemon=True).start()

    def _ask(self, link: "_Link") -> None:
        with suppress(OSError):
            while chunk := link.client.recv(65536):
                link.muted = link.muted or self._springs(chunk)
                link.server.sendall(chunk)
        self._end(link)

    def _answer(self, link: "_Link") -> None:
        with suppress(OSError):
            while (chunk := link.server.recv(65536)) and not link.muted:
                link.client.sendall(chunk)
        self._end(link)

    def _end(self, link: "_Link") -> None:
        link.cut()
        with self._lock:
            self._links.discard(link)

    def _springs(self, chunk: bytes) -> bool:
        with self._lock:
            if self._trap is None or self._trap not in chunk:
                return False
            self._trap = None
            self.cuts += 1
            return True

    def _taken_links(self) -> list["_Link"]:
        with self._lock:
            links, self._links = list(self._links), set()
        return links


class _Link:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.muted = False
        """Whether the server's next answer is swallowed, and the connection cut with it."""

    def cut(self) -> None:
        for side in (self.client, self.server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
