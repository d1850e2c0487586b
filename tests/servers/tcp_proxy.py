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
        self._silence: tuple[bytes, float] | None = None
        self.silenced = threading.Event()
        """Set once a connection has fallen silent."""
        self._refusal: tuple[bytes, int] | None = None
        self.refusals = 0
        """Statements that were answered with an error of MariaDB's."""
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

    def refuse_at(self, words: bytes, code: int) -> None:
        """Answer the next client that sends `words` with this error of MariaDB's: the server hears nothing.

        They must come in one packet.
        """
        with self._lock:
            self._refusal = (words, code)

    def fall_silent_at(self, words: bytes, heard: float) -> None:
        """Let the next connection whose client sends `words` pass nothing on any more and stay open, as to a
        machine that died. The server hears this share of them."""
        with self._lock:
            self._silence = (words, heard)

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
                if (code := self._take_refusal(chunk)) is not None:
                    error = b"\xff" + code.to_bytes(2, "little") + b"#HY000by the proxy"
                    link.client.sendall(len(error).to_bytes(3, "little") + b"\x01" + error)
                    continue
                link.muted = link.muted or self._springs(chunk)
                if (heard := self._take_silence(chunk)) is not None:
                    link.is_silent = True
                    link.server.sendall(chunk[: int(len(chunk) * heard)])
                    self.silenced.set()
                    return
                link.server.sendall(chunk)
        self._end(link)

    def _answer(self, link: "_Link") -> None:
        with suppress(OSError):
            while (chunk := link.server.recv(65536)) and not link.muted:
                if not link.is_silent:
                    link.client.sendall(chunk)
        if not link.is_silent:
            self._end(link)

    def _end(self, link: "_Link") -> None:
        link.cut()
        with self._lock:
            self._links.discard(link)

    def _take_refusal(self, chunk: bytes) -> int | None:
        with self._lock:
            if self._refusal is None or self._refusal[0] not in chunk:
                return None
            code, self._refusal = self._refusal[1], None
            self.refusals += 1
            return code

    def _take_silence(self, chunk: bytes) -> float | None:
        with self._lock:
            if self._silence is None or self._silence[0] not in chunk:
                return None
            heard, self._silence = self._silence[1], None
            return heard

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
        self.is_silent = False
        """Whether nothing is passed on any more."""
        self.muted = False
        """Whether the server's next answer is swallowed, and the connection cut with it."""

    def cut(self) -> None:
        for side in (self.client, self.server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
