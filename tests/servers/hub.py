"""A hub for checkpoints on this machine: as much of huggingface.co's API as its client asks for."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Has one repository, `someone/small`, with the folder's files, at one commit."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.fetched: list[str] = []
        self.torn: set[str] = set()
        """Files whose next transfer breaks off in the middle."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(r"/api/models/someone/small(/revision/\w+)?", path):
            files = [{"rfilename": name} for name in self.server.names()]
            self._json({"id": "someone/small", "sha": COMMIT, "siblings": files})
        elif path.startswith(f"/api/models/someone/small/tree/{COMMIT}"):
            self._json([self._entry(name) for name in self.server.names()])
        else:
            self._file(path, with_content=True)

    def do_HEAD(self) -> None:
        self._file(self.path, with_content=False)

    def _entry(self, name: str) -> dict[str, object]:
        content = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}

    def _file(self, path: str, *, with_content: bool) -> None:
        name = path.removeprefix(f"/someone/small/resolve/{COMMIT}/")
        if name not in self.server.names():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (self.server.folder / name).read_bytes()
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}
        if not with_content:
            self._answer(200, content, headers, sent=0)
            return
        self.server.fetched.append(name)
        if name in self.server.torn:
            self.server.torn.remove(name)
            self._answer(200, content, headers, sent=len(content) // 2)
            self.close_connection = True
        else:
            self._answer(200, content, headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        """Of the content, `sent` bytes are written."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving_hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
