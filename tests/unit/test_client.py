"""The Python client, against answers as the server gives them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from avatarforge.client import (
    Client,
    InvalidInput,
    JobFailed,
    NotFound,
    Refused,
    ServerUnreachable,
    Status,
    StillRunning,
    TryLater,
)

Answer = Callable[[httpx.Request], httpx.Response]


def client_of(answer: Answer) -> Client:
    return Client("http://forge", transport=httpx.MockTransport(answer))


def problem(status: int, code: str, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(
        status,
        json={"type": "about:blank", "title": "x", "status": status, "detail": detail, "code": code},
        headers={"content-type": "application/problem+json", **headers},
    )


def job(status: str = "PENDING", **more: object) -> Status:
    return {
        "jobId": "j1",
        "customerId": "ana",
        "status": status,
        "isTerminal": status in ("DONE", "FAILED", "CANCELLED"),
        **more,
    }


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "ana.jpg"
    path.write_bytes(b"a picture")
    return path


def test_an_upload_sends_the_photo_and_only_the_parameters_that_are_given(photo: Path) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        return httpx.Response(202, json=dict(job()))

    with client_of(answer) as client:
        assert client.submit("ana", photo, style="neon", strength=None, seed=0) == job()
    body = seen[0].content
    assert seen[0].url.path == "/customers/ana"
    assert b'name="photo"; filename="ana.jpg"' in body
    assert b"a picture" in body
    assert b'name="style"' in body
    assert b'name="seed"' in body
    assert b"strength" not in body


def test_a_customer_id_with_a_slash_stays_one_segment_of_the_path(photo: Path) -> None:
    paths: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return problem(400, "invalid_customer_id", "no")

    with client_of(answer) as client, pytest.raises(InvalidInput):
        client.submit("a/b", photo)
    assert paths == [b"/customers/a%2Fb"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidInput), (422, InvalidInput), (404, NotFound), (503, TryLater), (500, Refused)],
)
def test_a_problem_document_becomes_an_error_of_its_kind(status: int, kind: type[Refused]) -> None:
    with (
        client_of(lambda _: problem(status, "some_code", "What was wrong.")) as client,
        pytest.raises(Refused) as refused,
    ):
        client.status("ana", "j1")
    assert type(refused.value) is kind
    assert (refused.value.code, str(refused.value), refused.value.status) == (
        "some_code",
        "What was wrong.",
        status,
    )


def test_an_unavailable_server_says_when_to_try_again() -> None:
    busy = problem(503, "database_unavailable", "x", **{"retry-after": "9"})
    with client_of(lambda _: busy) as client, pytest.raises(TryLater) as refused:
        client.status("ana", "j1")
    assert refused.value.retry_after == 9


def test_an_error_that_is_no_problem_document_is_told_by_its_status() -> None:
    with (
        client_of(lambda _: httpx.Response(500, text="Internal Server Error")) as client,
        pytest.raises(Refused, match="answered 500"),
    ):
        client.status("ana", "j1")


def test_a_server_that_is_not_there_is_told_with_its_url() -> None:
    with Client("http://127.0.0.1:1") as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:1"):
            client.status("ana", "j1")


def test_following_a_job_yields_every_status_up_to_the_terminal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "POLL_SECONDS", 0)
    later = _answers(job("PROCESSING"), job("PROCESSING"), job("DONE"))
    with client_of(later) as client:
        seen = [status["status"] for status in client.follow(job("PENDING"), seconds=10)]
    assert seen == ["PENDING", "PROCESSING", "PROCESSING", "DONE"]


def test_waiting_ends_with_the_done_job() -> None:
    with client_of(_answers(job("PROCESSING"), job("DONE"))) as client:
        assert client.wait(job(), seconds=10) == job("DONE")


def test_waiting_for_a_job_that_fails_raises_its_reason() -> None:
    failed = job("FAILED", error={"code": "model_unusable", "message": "No such checkpoint."})
    with client_of(_answers(failed)) as client, pytest.raises(JobFailed, match="No such checkpoint"):
        client.wait(job(), seconds=10)


def test_waiting_too_long_says_that_the_job_goes_on() -> None:
    with client_of(_answers(job())) as client, pytest.raises(StillRunning, match="still PENDING"):
        client.wait(job(), seconds=0)


def _answers(*statuses: Status) -> Answer:
    remaining: Iterator[Status] = iter(statuses)
    return lambda _: httpx.Response(200, json=dict(next(remaining)))
