"""A small synchronous client of AvatarForge's REST interface.

with Client("http://127.0.0.1:8000") as client:
    job = client.submit("ana", Path("ana.jpg"), style="pixel-art")
    job = client.wait(job, seconds=60)
    picture, media_type = client.avatar(job)
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import quote

import httpx

Status = Mapping[str, Any]
"""A ProfilePhotoJobStatus as the server sends it."""


class ClientError(Exception):
    """Base of what the client raises."""


class ServerUnreachable(ClientError):
    """Nothing answers at the server's address, or it stopped in the middle of an answer."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"No AvatarForge answers at {self.url} ({self.reason}). "
            "Start one with `avatarforge up`, or for one call with `avatarforge forge --start`."
        )


class Refused(ClientError):
    """The server answered with a problem document (RFC 9457)."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, code, detail)
        self.status, self.code, self.detail = status, code, detail

    def __str__(self) -> str:
        return self.detail


class InvalidInput(Refused):
    """The request is at fault: sending it again would end the same way."""


class NotFound(Refused):
    """There is no such customer, job or image."""


class TryLater(Refused):
    """A part of the server is not available; nothing was kept."""

    retry_after: float = 5
    """Seconds after which the server asks to try again."""


class JobFailed(ClientError):
    """The job ended without an avatar."""

    def __init__(self, job: Status) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        error = self.job.get("error") or {}
        return (
            f"Job {self.job['jobId']} is {self.job['status']}: {error.get('message', 'no reason is given')}"
        )


class StillRunning(ClientError):
    """The job did not end in the time that was given; it goes on."""

    def __init__(self, job: Status, seconds: float) -> None:
        super().__init__(job, seconds)
        self.job, self.seconds = job, seconds

    def __str__(self) -> str:
        return f"Job {self.job['jobId']} is still {self.job['status']} after {self.seconds:g} s."


class Client:
    """One server. Close it, or use it in a `with` block."""

    POLL_SECONDS: ClassVar[float] = 0.25
    """How often progress is asked for."""

    def __init__(
        self, url: str, *, timeout: float = 30, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`timeout`: seconds that one answer may take."""
        self.url = url.rstrip("/")
        # The proxy of the environment is for the world outside; and `file` parts are read as they are sent.
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout, transport=transport, trust_env=False, follow_redirects=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Whether an AvatarForge answers and is ready for uploads."""
        try:
            answer = self._http.get("/readyz", timeout=5)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    def submit(self, customer_id: str, photo: Path, **parameters: object) -> Status:
        """Upload a photo. `parameters` are the form's other fields; those that are `None` are left away.

        Raises `InvalidInput`, `TryLater`, `ServerUnreachable`, and `OSError` when the file cannot be read.
        """
        fields = {name: str(value) for name, value in parameters.items() if value is not None}
        with photo.open("rb") as content:
            files = {"photo": (photo.name, content)}
            return self._json(
                lambda: self._http.post(f"/customers/{_segment(customer_id)}", data=fields, files=files)
            )

    def status(self, customer_id: str, job_id: str, wait_seconds: float = 0) -> Status:
        """The job now, or once it is terminal, `wait_seconds` from now at the latest."""
        path = f"/customers/{_segment(customer_id)}/photos/{_segment(job_id)}/status"
        parameters = {"waitSeconds": f"{wait_seconds:g}"} if wait_seconds else {}
        patience = httpx.Timeout(self._http.timeout.read, read=(self._http.timeout.read or 0) + wait_seconds)
        return self._json(lambda: self._http.get(path, params=parameters, timeout=patience))

    def follow(self, job: Status, seconds: float) -> Iterator[Status]:
        """The job's status a few times a second, until and including the terminal one.

        Raises `StillRunning` after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            yield job
            if job["isTerminal"]:
                return
            if time.monotonic() >= deadline:
                raise StillRunning(job, seconds)
            time.sleep(self.POLL_SECONDS)
            job = self.status(job["customerId"], job["jobId"])

    def wait(self, job: Status, seconds: float) -> Status:
        """The job when it is done. Raises `JobFailed`, and `StillRunning` after `seconds`."""
        deadline = time.monotonic() + seconds
        while not job["isTerminal"]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise StillRunning(job, seconds)
            job = self.status(job["customerId"], job["jobId"], wait_seconds=max(1, min(30, int(left))))
        if job["status"] != "DONE":
            raise JobFailed(job)
        return job

    def avatar(self, job: Status) -> tuple[bytes, str]:
        """The finished picture's file and its media type. Raises `NotFound` when there is none (yet)."""
        path = f"/customers/{job['customerId']}/photos/{job['jobId']}/generated"
        answer = self._answer(lambda: self._http.get(path))
        return answer.content, answer.headers.get("content-type", "").partition(";")[0]

    def models(self) -> list[Status]:
        """What the server's models are and can."""
        models: list[Status] = self._json(lambda: self._http.get("/models"))["models"]
        return models

    def _json(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        message: dict[str, Any] = self._answer(send).json()
        return message

    def _answer(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        with _reaching(self.url):
            answer = send()
        if answer.is_success:
            return answer
        raise _refusal(answer)


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServerUnreachable(url, str(error) or type(error).__name__) from error


def _segment(text: str) -> str:
    """One segment of a path, so that a customer id with a slash is refused by the server, not misread."""
    return quote(text, safe="")


def _refusal(answer: httpx.Response) -> Refused:
    problem = _problem(answer)
    code = str(problem.get("code", "unknown"))
    detail = str(problem.get("detail") or f"The server answered {answer.status_code} {answer.reason_phrase}.")
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        later = TryLater(answer.status_code, code, detail)
        later.retry_after = float(answer.headers.get("retry-after", TryLater.retry_after))
        return later
    if answer.status_code == httpx.codes.NOT_FOUND:
        return NotFound(answer.status_code, code, detail)
    kind = InvalidInput if answer.is_client_error else Refused
    return kind(answer.status_code, code, detail)


def _problem(answer: httpx.Response) -> Mapping[str, Any]:
    """The problem document; empty when something else than AvatarForge answered."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
