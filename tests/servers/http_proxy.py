"""An HTTP proxy on loopback in front of a server, whose answers can be late, refused, or missing."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import TracebackType
from typing import Self

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "content-length"})


class HttpProxy:
    """Passes requests on to the server at `target_port`. Use it as a context manager.

    The `Host` header goes through as it is, so that signatures over it stay right.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.delay = 0.0
        """Seconds that each answer is late."""
        self.refuse_every = 0
        """Which of the calls are answered 503: with 3 every third, with 0 none."""
        self.refused = 0
        """Calls that were."""
        self.is_down = False
        """Whether connections end without an answer."""
        self._calls = count(1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="http proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def down(self) -> Iterator[None]:
        self.is_down = True
        try:
            yield
        finally:
            self.is_down = False

    @contextmanager
    def refusing(self, every: int) -> Iterator[None]:
        self.refuse_every = every
        try:
            yield
        finally:
            self.refuse_every = 0

    @contextmanager
    def late(self, seconds: float) -> Iterator[None]:
        self.delay = seconds
        try:
            yield
        finally:
            self.delay = 0.0

    def refuses(self) -> bool:
        """Whether this call is one of those that are refused; counts it."""
        if self.refuse_every == 0 or next(self._calls) % self.refuse_every:
            return False
        self.refused += 1
        return True


def _handler_of(proxy: HttpProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if proxy.is_down:
                self.close_connection = True
                return
            time.sleep(proxy.delay)
            if proxy.refuses():
                self._answer(503, [], b"")
                return
            try:
                status, headers, content = self._asked(body)
            except OSError:
                self.close_connection = True
                return
            self._answer(status, headers, content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

        def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.target_port, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in HOP_BY_HOP:
                        upstream.putheader(name, value)
                upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body)
                answer = upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                upstream.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            """Calls are not news."""

    return Handler
