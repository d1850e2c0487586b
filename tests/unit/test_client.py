"""The Python client, against answers as servers, busy servers and strangers give them."""

import asyncio
import inspect
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
from pydantic.alias_generators import to_camel

from avatarforge.client import (
    AccessDenied,
    APIError,
    AsyncClient,
    Client,
    Conflict,
    ImageFile,
    InvalidRequest,
    InvalidWebhook,
    JobChanged,
    JobFailed,
    JobRef,
    NotFound,
    ServerBusy,
    ServerUnreachable,
    StillRunning,
    UnexpectedResponse,
    verify_webhook,
)
from avatarforge.client.events import ServerSentEvent, SSEDecoder
from avatarforge.ingress.upload.form import FORM_NAMES
from avatarforge.messages import LiveJob, ProfilePhotoJobStatus
from avatarforge.webhooks.signing import Signer, new_secret
from tests.factories import a_job

Answer = Callable[[httpx.Request], httpx.Response]

JOB = JobRef("ana", "j1")


def client_of(answer: Answer, **options: Any) -> Client:
    return Client("http://forge", transport=httpx.MockTransport(answer), **{"retry_timeout": 0, **options})


def problem(status: int, code: str, detail: str = "x", **headers: str) -> httpx.Response:
    document = {"type": "about:blank", "title": "x", "status": status, "detail": detail, "code": code}
    return httpx.Response(
        status,
        json={**document, "field": "strength"},
        headers={"content-type": "application/problem+json", **headers},
    )


def job(status: str = "PENDING", **more: object) -> dict[str, Any]:
    """A job as it goes over the wire."""
    told: dict[str, Any] = json.loads(
        LiveJob(job=a_job(customer_id="ana", job_id="j1")).to_message().json_bytes()
    )
    return {**told, "status": status, "isTerminal": status in ("DONE", "FAILED", "CANCELLED"), **more}


def read_job(status: str = "PENDING", **more: object) -> ProfilePhotoJobStatus:
    return ProfilePhotoJobStatus.model_validate(job(status, **more))


def answers(*given: httpx.Response | dict[str, Any] | Exception) -> tuple[Answer, list[httpx.Request]]:
    """Each answer once, in order, and the requests that were made."""
    remaining: Iterator[httpx.Response | dict[str, Any] | Exception] = iter(given)
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        requests.append(request)
        following = next(remaining)
        if isinstance(following, Exception):
            raise following
        return following if isinstance(following, httpx.Response) else httpx.Response(200, json=following)

    return answer, requests


# --- requests ----------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "ana.jpg"
    path.write_bytes(b"a picture")
    return path


def test_an_upload_sends_the_photo_and_only_the_fields_that_are_given(photo: Path) -> None:
    answer, requests = answers(job())
    with client_of(answer) as client:
        fields = {"style": "neon", "strength": None, "seed": 0, "allow_remote": False}
        assert client.submit("ana", photo, **fields) == read_job()
    [request] = requests
    assert request.url.path == "/customers/ana"
    assert b'name="photo"; filename="ana.jpg"' in request.content
    assert b"a picture" in request.content
    assert b'name="style"\r\n\r\nneon' in request.content
    assert b'name="seed"\r\n\r\n0' in request.content
    assert b'name="allowRemote"\r\n\r\nfalse' in request.content
    assert b"strength" not in request.content


def test_every_field_of_an_upload_is_an_argument_of_submit() -> None:
    arguments = set(inspect.signature(Client.submit).parameters)
    names = {to_camel(name) for name in arguments - {"self", "customer_id", "photo", "idempotency_key"}}
    assert names == set(FORM_NAMES.values())


def test_a_photo_may_be_a_path_bytes_or_an_open_file(photo: Path) -> None:
    answer, requests = answers(job(), job(), job(), job())
    with client_of(answer) as client, photo.open("rb") as file:
        for given in (photo.read_bytes(), photo, str(photo), file):
            client.submit("ana", given)
    assert all(b"a picture" in request.content for request in requests)
    assert all(b'filename="ana.jpg"' in request.content for request in requests[1:])


@pytest.mark.parametrize("following", ["/customers?after=x", "/c/customers?after=x"])
def test_below_a_path_whole_segments_of_the_next_page_are_ours(following: str) -> None:
    answer, requests = answers({"customers": [], "next": following}, {"customers": [], "next": None})
    with Client("http://forge/c", transport=httpx.MockTransport(answer)) as client:
        assert list(client.list_customers()) == []
    assert requests[1].url.raw_path == b"/c/customers?after=x"


def test_a_customer_id_with_a_slash_stays_one_segment_of_the_path() -> None:
    answer, requests = answers(problem(400, "invalid_customer_id"))
    with client_of(answer) as client, pytest.raises(InvalidRequest):
        client.submit("a/b", b"x")
    assert requests[0].url.raw_path == b"/customers/a%2Fb"


@pytest.mark.parametrize("name", [".", ".."])
def test_erasing_a_job_named_by_dots_does_not_erase_what_is_above_it(name: str) -> None:
    answer, requests = answers(problem(404, "job_not_found"))
    with client_of(answer) as client, pytest.raises(NotFound):
        client.erase(JobRef("ana", name))
    assert [request.url.raw_path for request in requests] == [
        f"/customers/ana/photos/{'%2E' * len(name)}".encode()
    ]


def test_the_key_and_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATARFORGE_URL", "http://there:81/")
    monkeypatch.setenv("AVATARFORGE_API_KEY", "af_secret")
    answer, requests = answers(job())
    with Client(transport=httpx.MockTransport(answer)) as client:
        client.get_status(JOB)
    assert str(requests[0].url) == "http://there:81/customers/ana/photos/j1/status"
    assert requests[0].headers["authorization"] == "Bearer af_secret"


def test_the_key_does_not_go_to_another_host() -> None:
    answer, requests = answers(
        httpx.Response(302, headers={"location": "http://storage/signed"}),
        httpx.Response(200, content=b"picture"),
    )
    with client_of(answer, api_key="af_secret") as client:
        assert client.download(JOB).content == b"picture"
    assert requests[1].url.host == "storage"
    assert "authorization" not in requests[1].headers


def test_the_key_may_come_with_the_end_of_its_line() -> None:
    answer, requests = answers(job())
    with client_of(answer, api_key="af_secret\n") as client:
        client.get_status(JOB)
    assert requests[0].headers["authorization"] == "Bearer af_secret"


@pytest.mark.parametrize("key", ["af_sécret", "af_a\nf_b", "af_\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(key: str) -> None:
    with pytest.raises(ValueError, match="The API key") as refused:
        Client("http://forge", api_key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["forge:8000", "ftp://forge", "http://", "forge", "http://[forge", "http://forge:99999"]
)
def test_an_address_that_is_no_url_is_refused_with_one_that_is(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be such as http://127\.0\.0\.1:8000"):
        Client(url)


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (409, Conflict),
        (429, ServerBusy),
        (503, ServerBusy),
        (500, APIError),
    ],
)
def test_a_problem_document_becomes_an_error_of_its_kind(status: int, kind: type[APIError]) -> None:
    with (
        client_of(lambda _: problem(status, "some_code", "What was wrong.")) as client,
        pytest.raises(APIError) as refused,
    ):
        client.get_status(JOB)
    error = refused.value
    assert type(error) is kind
    assert (error.code, str(error), error.status) == ("some_code", "What was wrong.", status)
    assert error.extensions == {"field": "strength"}


def test_an_error_that_is_no_problem_document_is_told_by_its_status() -> None:
    with (
        client_of(lambda _: httpx.Response(500, text="Internal Server Error")) as client,
        pytest.raises(APIError, match="answered 500"),
    ):
        client.get_status(JOB)


def test_an_answer_that_cannot_be_read_is_told_with_what_is_wrong_in_it() -> None:
    answer, _ = answers(httpx.Response(200, text="<html>"), {"jobId": "j1"})
    with client_of(answer) as client:
        for what in ("Invalid JSON", "customerId"):
            with pytest.raises(UnexpectedResponse, match=what):
                client.get_status(JOB)


def test_what_a_later_server_adds_is_passed_over() -> None:
    answer, _ = answers(job(colour="blue"))
    with client_of(answer) as client:
        assert client.get_status(JOB) == read_job()


def test_a_server_that_is_not_there_is_told_with_its_url() -> None:
    with Client("http://127.0.0.1:1", retry_timeout=0) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:1"):
            client.get_status(JOB)


# --- asking again ------------------------------------------------------------------------------------------


def test_a_submission_is_repeated_under_one_key() -> None:
    answer, requests = answers(
        httpx.ReadError("cut"),
        problem(503, "tracker_unavailable", **{"retry-after": "0"}),
        problem(429, "too_many", **{"retry-after": "0"}),
        problem(409, "idempotency_key_in_flight", **{"retry-after": "0"}),
        job(),
    )
    with client_of(answer, retry_timeout=30) as client:
        assert client.submit("ana", b"a picture") == read_job()
    assert len({request.headers["idempotency-key"] for request in requests}) == 1
    assert all(b"a picture" in request.content for request in requests)


def test_two_submissions_have_two_keys_and_one_may_be_given() -> None:
    answer, requests = answers(job(), job(), job())
    with client_of(answer) as client:
        client.submit("ana", b"x")
        client.submit("ana", b"x")
        client.submit("ana", b"x", idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_the_server_says_when_it_is_asked_again() -> None:
    answer, _ = answers(problem(503, "unavailable", **{"retry-after": "1"}), job())
    began = time.monotonic()
    with client_of(answer, retry_timeout=5) as client:
        client.get_status(JOB)
    assert time.monotonic() - began >= 1


def test_retrying_has_an_end() -> None:
    def busy(_: httpx.Request) -> httpx.Response:
        return problem(503, "unavailable", **{"retry-after": "9"})

    with client_of(busy, retry_timeout=5) as client, pytest.raises(ServerBusy) as refused:
        client.get_status(JOB)
    assert refused.value.retry_after == 9


@pytest.mark.parametrize("fault", [problem(422, "invalid_request"), problem(500, "internal_error")])
def test_what_is_at_fault_is_not_repeated(fault: httpx.Response) -> None:
    answer, requests = answers(fault)
    with client_of(answer, retry_timeout=30) as client, pytest.raises(APIError):
        client.submit("ana", b"x")
    assert len(requests) == 1


@pytest.mark.parametrize("lost", [httpx.ReadError("cut"), problem(502, "bad_gateway")])
def test_what_may_have_taken_effect_is_repeated_under_one_idempotency_key(
    lost: httpx.Response | Exception,
) -> None:
    delivery = {"deliveryId": "d", "seq": 1, "url": "http://x", "state": "PENDING", "attempts": []}
    delivery |= {"createdAt": "2026-01-01T00:00:00Z", "nextAt": None}
    for call, told in (("retry", job()), ("redeliver", delivery)):
        answer, requests = answers(lost, told)
        with client_of(answer, retry_timeout=5) as client:
            getattr(client, call)(JOB, *(["d"] if call == "redeliver" else []))
        [key] = {request.headers["idempotency-key"] for request in requests}
        assert key
        assert len(requests) == 2


@pytest.mark.parametrize("status", [404, 500, 502, 503])
def test_a_proxys_own_answer_is_a_passing_fault(status: int) -> None:
    plain = httpx.Response(status, text="Path '/' not found.")
    stream = httpx.Response(
        200,
        text=f"id: 7\nevent: status\ndata: {json.dumps(job('DONE'))}\n\n",
        headers={"content-type": "text/event-stream"},
    )
    answer, _ = answers(plain, job(), plain, stream)
    with client_of(answer, retry_timeout=5) as client:
        assert client.get_status(JOB) == read_job()
        [event] = client.watch(JOB)
    assert isinstance(event, JobChanged)


def test_an_erasure_that_a_proxy_does_not_pass_on_has_not_happened() -> None:
    answer, _ = answers(httpx.ReadError("cut"), *3 * [httpx.Response(404, text="not found")])
    with client_of(answer, retry_timeout=0.5) as client, pytest.raises(ServerBusy):
        client.erase(JOB)


def test_an_image_that_storage_does_not_have_is_not_found() -> None:
    away = httpx.Response(302, headers={"location": "http://storage/avatar.png"})
    answer, _ = answers(away, httpx.Response(404, text="<Error>NoSuchKey</Error>"))
    with client_of(answer, retry_timeout=5) as client, pytest.raises(NotFound):
        client.download(JOB)


def test_an_erasure_that_a_gateway_lost_has_gone_well() -> None:
    answer, requests = answers(problem(504, "gateway_timeout"), problem(404, "job_not_found"))

    client_of(answer, retry_timeout=5).erase(JOB)

    assert len(requests) == 2


def test_a_response_that_was_held_back_for_long_leaves_time_to_ask_again() -> None:
    answer, requests = answers(httpx.ReadError("cut"), job("DONE"))

    def hold(request: httpx.Request) -> httpx.Response:
        if not requests:
            time.sleep(0.4)
        return answer(request)

    assert client_of(hold, retry_timeout=0.3).wait(JOB).is_terminal


def test_watching_what_is_no_event_stream_says_what_it_is() -> None:
    page = httpx.Response(200, html="<p>Welcome</p>")

    with pytest.raises(UnexpectedResponse, match="text/html"):
        next(client_of(answers(page)[0], retry_timeout=5).watch(JOB))


def test_redirects_without_end_are_an_unexpected_response() -> None:
    answer, _ = answers(httpx.TooManyRedirects("Exceeded maximum allowed redirects."))

    with pytest.raises(UnexpectedResponse, match="redirects"):
        client_of(answer).get_status(JOB)


def test_an_erasure_whose_answer_was_lost_has_gone_well() -> None:
    answer, _ = answers(httpx.ReadError("cut"), problem(404, "job_not_found"))
    with client_of(answer, retry_timeout=30) as client:
        client.erase(JOB)


def test_erasing_what_is_not_there_is_refused() -> None:
    answer, _ = answers(problem(404, "job_not_found"))
    with client_of(answer, retry_timeout=30) as client, pytest.raises(NotFound):
        client.erase(JOB)


# --- waiting -----------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_done_job() -> None:
    answer, requests = answers(job("PROCESSING"), job("DONE"))
    with client_of(answer) as client:
        assert client.wait(JOB, seconds=10) == read_job("DONE")
    assert float(requests[0].url.params["waitSeconds"]) == 10


def test_waiting_for_a_job_that_fails_raises_its_reason() -> None:
    failed = job("FAILED", error={"code": "model_unusable", "message": "No such checkpoint."})
    answer, _ = answers(failed)
    with client_of(answer) as client, pytest.raises(JobFailed, match="No such checkpoint"):
        client.wait(JOB, seconds=10)


def test_waiting_too_long_says_that_the_job_goes_on() -> None:
    answer, _ = answers(job())
    with client_of(answer) as client, pytest.raises(StillRunning, match="still PENDING"):
        client.wait(JOB, seconds=0)


# --- the twins ---------------------------------------------------------------------------------------------


def test_the_blocking_client_is_what_is_generated_from_the_asynchronous_one() -> None:
    tree = Path(__file__).parents[2]
    generated = subprocess.run(
        [sys.executable, tree / ".ci" / "generate_client.py"], capture_output=True, text=True, check=True
    ).stdout
    assert generated == (tree / "avatarforge" / "client" / "sync_client.py").read_text()


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_method_of_a_client_has_a_signature_and_a_docstring(client: type) -> None:
    assert client.__doc__
    for name, member in vars(client).items():
        if name.startswith("_"):
            continue
        method = member.fget if isinstance(member, property) else member
        assert method.__doc__, name
        types = {**get_type_hints(method), "self": client}
        signature = inspect.signature(method)
        assert {*signature.parameters, "return"} == types.keys(), name
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}, name


async def test_the_asynchronous_client_reads_an_open_file_in_another_thread() -> None:
    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.append(threading.current_thread())
            return super().read(size)

    readers: list[threading.Thread] = []
    answer, _ = answers(job())
    async with AsyncClient("http://forge", transport=httpx.MockTransport(answer), retry_timeout=0) as client:
        await client.submit("ana", File(b"a photo"))
    assert len(readers) == 1
    assert readers[0] is not threading.main_thread()


async def test_the_asynchronous_client_asks_again_too(photo: Path) -> None:
    answer, requests = answers(httpx.ReadError("cut"), job(), job("DONE"))

    async def later(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return answer(request)

    async with AsyncClient("http://forge", transport=httpx.MockTransport(later)) as client:
        accepted = await client.submit("ana", photo, style="neon")
        assert await client.wait(accepted, seconds=10) == read_job("DONE")
    assert requests[0].headers["idempotency-key"] == requests[1].headers["idempotency-key"]


def test_the_client_imports_nothing_of_the_server_but_messages() -> None:
    code = (
        "import sys, avatarforge.client\n"
        "heavy = 'ray torch sqlalchemy diffusers PIL fastapi boto3 grpc numpy typer'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))\n"
        "print([name for name in sys.modules if name.startswith('avatarforge.ingress')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


# --- events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_read_however_the_bytes_are_cut(end: bytes, size: int) -> None:
    lines = [
        b": hello",
        b"",
        b"event: status",
        "data: {ä\u2028}".encode(),
        b"data:more",
        b"id: 7",
        b"",
        b"retry: 1",
        b"",
    ]
    wire = b"".join(line + end for line in lines) + (end if end == b"\r" else b"")
    reader = SSEDecoder()
    events = [
        event for start in range(0, len(wire), size) for event in reader.feed(wire[start : start + size])
    ]
    assert events == [ServerSentEvent(kind="status", data="{ä\u2028}\nmore", event_id="7")]


# --- webhooks ----------------------------------------------------------------------------------------------

NOW = 1_700_000_000


def call(*secrets: str, body: bytes | None = None) -> tuple[dict[str, str], bytes]:
    sent = json.dumps(job("DONE")).encode() if body is None else body
    return dict(Signer(secrets).headers("msg_j1_3", NOW, sent)), sent


def test_a_webhook_is_verified_and_read() -> None:
    secret = new_secret()
    headers, body = call(secret)
    shouted = {name.upper(): value for name, value in headers.items()}
    webhook = verify_webhook(shouted, body, secret, now=NOW + 10)
    assert (webhook.webhook_id, webhook.job, webhook.sent_at.timestamp()) == (
        "msg_j1_3",
        read_job("DONE"),
        NOW,
    )


def test_while_secrets_are_rotated_either_side_may_be_ahead() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    for signing, known in (((old, new), (new,)), ((old,), (new, old))):
        headers, body = call(*signing)
        assert verify_webhook(headers, body, known, now=NOW).job.job_id == "j1"
    headers, body = call(old, new)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(headers, body, [other], now=NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"webhook-id": "msg_other"}, "no signature"),
        ({"webhook-timestamp": str(NOW + 1)}, "no signature"),
        ({"webhook-timestamp": str(NOW - 301)}, "more than 300 s away"),
        ({"webhook-timestamp": str(NOW + 301)}, "more than 300 s away"),
        ({"webhook-timestamp": "soon"}, "no number"),
        ({"webhook-signature": ""}, "no header webhook-signature"),
        ({"webhook-id": ""}, "no header webhook-id"),
        ({"webhook-signature": "v1,ünicode v2,abc v1,"}, "no signature"),
    ],
)
def test_a_call_that_is_not_ours_is_refused(change: dict[str, str], reason: str) -> None:
    secret = new_secret()
    headers, body = call(secret)
    with pytest.raises(InvalidWebhook, match=reason):
        verify_webhook({**headers, **change}, body, secret, now=NOW)


def test_a_body_that_was_changed_or_is_no_job_is_refused() -> None:
    secret = new_secret()
    headers, body = call(secret)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(headers, body + b" ", secret, now=NOW)
    headers, body = call(secret, body=b"{}")
    with pytest.raises(InvalidWebhook, match="no ProfilePhotoJobStatus"):
        verify_webhook(headers, body, secret, now=NOW)


@pytest.mark.parametrize("secrets", [[], "mysecret", "whsec_short", ["whsec_§§§"]])
def test_a_secret_that_is_none_is_the_receivers_own_fault(secrets: str | list[str]) -> None:
    headers, body = call(new_secret())
    with pytest.raises(ValueError, match="secret"):
        verify_webhook(headers, body, secrets, now=NOW)


def test_a_photo_of_a_wrong_kind_is_told_before_anything_is_sent() -> None:
    with Client("http://127.0.0.1:1", retry_timeout=0) as client:
        with pytest.raises(TypeError, match=r"A photo is a path, .* not \{'photo': 1\}"):
            client.submit("ana", {"photo": 1})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match='open it with "rb"'):
            client.submit("ana", io.StringIO("text"))  # type: ignore[arg-type]


def test_an_image_is_shown_by_its_size() -> None:
    assert repr(ImageFile(content=bytes(5000), media_type="image/png")) == "<ImageFile image/png, 5000 bytes>"
