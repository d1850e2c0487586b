"""Requests that no honest client sends: refused with a reason, without a trace of trouble inside."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import grpc
import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.chaos.conftest import IS_LONG, Rig, told

REQUESTS = 2000 if IS_LONG else 240
SERVICE = "/avatarforge.v1.ProfilePhotoJobService/"
UNARY, STREAMING = ("SubmitPhoto", "GetStatus", "CancelJob", "KeepImage"), ("StreamStatus",)
OURS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
BOUNDARY = "x" * 20
MOST_GROWTH = 0.05
"""Share by which memory may grow after warming up."""


def hostile(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As Hypothesis runs it, the same at every run, without looking for the smallest example."""
    return settings(
        max_examples=max(1, examples),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Answers:
    """What the service says. Anything but an answer of ours fails the test at once."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()

    def check(self, status: int, media_type: str, text: str, of: str) -> None:
        self.statuses[status] += 1
        assert "Traceback" not in text, (of, text)
        assert status < 500 or status == 503, (of, status, text[:500])
        if status >= 400:
            assert media_type.startswith("application/problem+json"), (of, status, media_type, text[:200])


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


def test_requests_made_up_from_the_openapi_document(rig: Rig, answers: Answers) -> None:
    schema = schemathesis.openapi.from_url(f"{rig.service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    each = REQUESTS // 2 // len(operations)
    with requests.Session() as session:
        for operation in operations:
            for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):

                @hostile(each // 2)
                @given(case=operation.as_strategy(generation_mode=mode))
                def send(case: schemathesis.Case) -> None:
                    wanted = case.as_transport_kwargs(base_url=rig.service.url)
                    with session.request(**wanted, stream=True, timeout=90, allow_redirects=False) as answer:
                        is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
                        text = "" if is_stream else answer.text
                        answers.check(
                            answer.status_code,
                            answer.headers.get("content-type", ""),
                            text,
                            f"{case.method} {case.formatted_path}",
                        )

                # Where no value can be wrong there is no wrong request.
                with suppress(Unsatisfiable):
                    send()


pieces = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            f"--{BOUNDARY}\r\n".encode(),
            f"--{BOUNDARY}--\r\n".encode(),
            b"\r\n",
            b"\r\n\r\n",
            b'Content-Disposition: form-data; name="photo"; filename="a.jpg"\r\n',
            b'Content-Disposition: form-data; name="strength"\r\n',
            b'Content-Disposition: form-data; name="\xff\xfe"\r\n',
            b"Content-Type: image/jpeg\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\xff\xff\xff\xffWEBP",
            b"x" * 5000,
        ]
    ),
)


def test_broken_multipart_bodies(rig: Rig, answers: Answers) -> None:
    with rig.service.client() as client:

        @hostile(REQUESTS // 4)
        @given(parts=st.lists(pieces, max_size=12), whole=st.booleans())
        def send(parts: list[bytes], whole: bool) -> None:
            body = (f"--{BOUNDARY}\r\n".encode() if whole else b"") + b"".join(parts)
            answer = client.post(
                "/customers/hostile",
                content=body,
                headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
            )
            answers.check(answer.status_code, answer.headers["content-type"], answer.text, "multipart")
            assert answer.status_code != 202

        send()


header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=300
)


def test_strange_headers_and_queries(rig: Rig, answers: Answers) -> None:
    names = (
        "Idempotency-Key",
        "Last-Event-ID",
        "Content-Type",
        "Accept",
        "Authorization",
        "Range",
        "X-Forwarded-For",
    )
    with rig.service.client() as client:

        @hostile(REQUESTS // 8)
        @given(
            name=st.sampled_from(names), value=header_values, query=st.text(max_size=50), upload=st.booleans()
        )
        def send(name: str, value: str, query: str, upload: bool) -> None:
            headers = {name: value.strip().encode("latin-1")}
            if upload:
                request = client.build_request(
                    "POST",
                    "/customers/hostile",
                    files={"photo": ("a.jpg", rig.photo[:4000])},
                    headers=headers,
                )
            else:
                request = client.build_request(
                    "GET",
                    "/customers/hostile/photos",
                    params={"limit": query, "before": query},
                    headers=headers,
                )
            answer = client.send(request)
            answers.check(
                answer.status_code, answer.headers.get("content-type", ""), answer.text, f"{name}: {value!r}"
            )

        send()


def test_broken_protobuf(rig: Rig) -> None:
    with grpc.insecure_channel(rig.service.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:

        @hostile(REQUESTS // 8)
        @given(method=st.sampled_from(UNARY + STREAMING), body=st.binary(max_size=400))
        def send(method: str, body: bytes) -> None:
            code, details = _called(channel, method, body)
            assert "Traceback" not in details, (method, body, details)
            assert code in OURS, (method, body, code, details)

        send()


def _called(channel: grpc.Channel, method: str, body: bytes) -> tuple[grpc.StatusCode, str]:
    """How the call ended; a stream is left after its first message."""
    try:
        if method in STREAMING:
            stream = channel.unary_stream(SERVICE + method)(body, timeout=30)
            next(stream, None)
            stream.cancel()
        else:
            channel.unary_unary(SERVICE + method)(body, timeout=30)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def test_the_ingress_keeps_its_memory_and_tells_of_no_trouble(rig: Rig, answers: Answers) -> None:
    """After the tests above, which have warmed it up."""
    [ingress] = rig.service.processes("ray::ServeReplica:avatarforge:Ingress")
    before = ingress.memory_full_info().uss
    with rig.service.client() as client:
        for number in range(REQUESTS // 2):
            answer = client.post(f"/customers/hostile-{number}", content=rig.photo[: number * 10])
            answers.check(answer.status_code, answer.headers["content-type"], answer.text, "no multipart")
    growth = ingress.memory_full_info().uss / before - 1
    told("hostile requests", "sent", sum(answers.statuses.values()), "")
    told("hostile requests", "growth of the ingress' memory", 100 * growth, "%")
    assert growth < MOST_GROWTH
    assert httpx.get(f"{rig.service.url}/readyz").status_code == 200
    for path in rig.service.data_dir.joinpath("run", "ray").rglob("worker-*.err"):
        assert '"unexpected error"' not in path.read_text(errors="replace"), path
