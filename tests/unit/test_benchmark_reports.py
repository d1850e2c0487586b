"""What benchmarks report can be trusted: percentiles, JSON, the client's answers."""

import io
import json
from pathlib import Path
from socket import create_server
from threading import Thread

import pytest
from rich.console import Console

from benchmarks import load, report
from benchmarks.machine import Machine, describe
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table, percentile, spread

REPORT = Report(
    title="Example",
    figures=[Figure(name="ratio", value=0.5, unit="", wanted="≥ 0.5")],
    conditions={"photo": "none"},
    tables=[Table(title="Turns", columns=("turn", "ms"), rows=[(1, 2.5)])],
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return describe(tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10), (0.01, 1), (0.0, 1)]
)
def test_a_percentile_is_the_least_value_that_the_share_does_not_exceed(share: float, expected: int) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_repeated_measurements_are_told_with_their_median_least_and_most() -> None:
    assert [figure.value for figure in spread("start", [3.0, 1.0, 8.0], "s")] == [3.0, 1.0, 8.0]


def test_the_json_says_what_was_measured_where_and_whether_it_counts(tmp_path: Path, here: Machine) -> None:
    report.write(tmp_path / "new" / "example.json", "example", REPORT, here, quick=True)

    written = json.loads((tmp_path / "new" / "example.json").read_text(encoding="utf-8"))

    assert written["benchmark"] == "example"
    assert written["quick"] is True
    assert written["figures"] == [{"name": "ratio", "value": 0.5, "unit": "", "wanted": "≥ 0.5"}]
    assert written["tables"][0]["rows"] == [[1, 2.5]]
    assert written["machine"]["cores"] == here.cores >= 1
    assert written["machine"]["packages"]["ray"]
    assert written["machine"]["fsync_ms"] >= 0


def test_a_report_is_shown_with_its_figures_and_its_conditions(here: Machine) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    report.show(console, REPORT, here)
    shown = console.export_text()

    assert "ratio" in shown
    assert "≥ 0.5" in shown
    assert "photo: none" in shown


def test_the_photo_has_the_promised_size_and_is_the_same_each_time() -> None:
    photo = noisy_jpeg(size=50_000, side=400)

    assert 45_000 < len(photo) <= 50_000
    assert photo == noisy_jpeg(size=50_000, side=400)


def test_answers_in_pieces_are_put_together_and_counted() -> None:
    answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 11\r\n\r\n" + b'{"seed": 1}'
    with Answering([answer[:20], answer[20:50], answer[50:]] * 3) as url:
        done = load.send(url, iter([load.get("/")] * 3), clients=1)

    assert [reply.status for reply in done.replies] == [202, 202, 202]
    assert done.replies[0].json() == {"seed": 1}
    assert done.expect(202) is done
    assert done.rate > 0


def test_an_error_that_is_answered_quickly_is_no_success() -> None:
    with Answering([b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno"]) as url:
        done = load.send(url, iter([load.get("/")]), clients=1)

    with pytest.raises(RuntimeError, match=r"\{503: 1\}, such as b'no'"):
        done.expect(202)


def test_a_server_that_hangs_up_is_an_error() -> None:
    with Answering([b"HTTP/1.1 200 OK\r\n"]) as url, pytest.raises(ConnectionError, match="200 OK"):
        load.send(url, iter([load.get("/")]), clients=1)


def test_an_upload_is_one_whole_multipart_request() -> None:
    request = load.upload("/customers/ana", b"\xff\xd8", "image/jpeg", {"seed": 7})
    head, _, body = request.partition(b"\r\n\r\n")

    assert b"Content-Length: %d" % len(body) in head
    assert body.count(b"--" + load.BOUNDARY) == 3
    assert b'name="seed"\r\n\r\n7\r\n' in body
    assert body.endswith(b"--" + load.BOUNDARY + b"--\r\n")


class Answering:
    """A server for one connection: after each request it sends pieces up to the end of one answer."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._listener = create_server(("127.0.0.1", 0))
        self._thread = Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            waiting = iter(self._pieces)
            while piece := next(waiting, b""):
                if piece.startswith(b"HTTP"):
                    connection.recv(65536)
                connection.sendall(piece)
