"""The errors that the client raises.

ClientError
├── ServerUnreachable       nothing answers, or the connection broke
├── UnexpectedResponse      the response is not one of AvatarForge
├── APIError                the server answered with an error; `code` is stable
│   ├── InvalidRequest      400 and other 4xx: the request is at fault
│   ├── AccessDenied        401, 403: the API key
│   ├── NotFound            404: no such customer, job, image or delivery
│   ├── Conflict            409: the job's state does not allow it
│   └── ServerBusy          429, 502, 503, 504, and a proxy's own 404 and 5xx: try again later
├── JobFailed               from `wait`: the job ended without an avatar
├── StillRunning            from `wait`: the job did not end in time
└── InvalidWebhook          from `verify_webhook`
"""

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import httpx

from avatarforge.domain.errors import FormattedError
from avatarforge.messages import ProfilePhotoJobStatus

_STANDARD_MEMBERS = ("type", "title", "status", "detail", "instance", "code")
"""Of a problem document (RFC 9457), with our `code`."""


class ClientError(FormattedError):
    """Base class of the client's errors."""


class ServerUnreachable(ClientError):
    """Nothing answers at the server's address, or the connection broke in the middle of a response."""

    message = "No AvatarForge answers at {url} ({reason})."
    url: str
    reason: str


class UnexpectedResponse(ClientError):
    """The response is not one of AvatarForge, or of a version that this client does not understand."""

    message = "{url} does not answer as AvatarForge does: {reason}."
    url: str
    reason: str


class APIError(ClientError):
    """The server answered with an error, as a problem document (RFC 9457). Its subclasses say which kind."""

    message = "{detail}"
    status: int
    """The HTTP status."""
    code: str
    """Stable; programs may rely on it. `unknown` if the response was not a problem document."""
    detail: str
    """For people: what was wrong, with what value, and what would be right."""
    extensions: Mapping[str, Any] = field(default_factory=dict)
    """The problem document's extension members, such as `field`, `value` and `expected`."""
    retry_after: float | None = None
    """Seconds after which the server asks to try again; `None` if it does not say."""

    @staticmethod
    def from_response(response: httpx.Response) -> "APIError":
        """Make the error of the kind that the response's status and code stand for."""
        problem = _parse_problem(response)
        status, code = response.status_code, str(problem.get("code", "unknown"))
        kind = _KINDS.get(status, InvalidRequest if 400 <= status < 500 else APIError)
        # A proxy before a server that starts answers 404 or 500 itself. After a redirect storage does.
        is_proxys = not problem and not response.history and (status == 404 or status >= 500)
        # Where the same upload is under way its job is the answer in a moment.
        if is_proxys or code == "idempotency_key_in_flight":
            kind = ServerBusy
        # The other form of Retry-After, a date, is not what our server sends.
        retry_after = response.headers.get("retry-after", "")
        return kind(
            status,
            code,
            str(problem.get("detail") or f"{response.url} answered {status}."),
            {name: value for name, value in problem.items() if name not in _STANDARD_MEMBERS},
            float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
        )


class InvalidRequest(APIError):
    """The request is at fault: sending it again would end the same way."""


class AccessDenied(APIError):
    """The API key is missing, unknown or does not allow this."""


class NotFound(APIError):
    """There is no such customer, job, image or delivery."""


class Conflict(APIError):
    """The job's state does not allow this."""


class ServerBusy(APIError):
    """The server is busy, or it or a part of it is not available.

    Nothing was kept, unless a gateway says so (500, 502, 504): it does also if the server stopped in the
    middle.
    """


class JobFailed(ClientError):
    """The job ended without an avatar."""

    job: ProfilePhotoJobStatus

    def __str__(self) -> str:
        reason = f": {self.job.error.message}" if self.job.error else "."
        return f"Job {self.job.job_id} is {self.job.status}{reason}"


class StillRunning(ClientError):
    """The job did not end in the given time; it goes on."""

    message = "Job {job.job_id} is still {job.status} after {seconds:g} s."
    job: ProfilePhotoJobStatus
    seconds: float


class InvalidWebhook(ClientError):
    """A call that claims to be a webhook is not signed with a known secret, is old, or is not a webhook."""

    message = "The webhook is not to be trusted: {reason}."
    reason: str


_KINDS: dict[int, type[APIError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    409: Conflict,
    429: ServerBusy,
    # Gateways answer so if the server does not run, or stopped in the middle of a response.
    502: ServerBusy,
    503: ServerBusy,
    504: ServerBusy,
}


def _parse_problem(response: httpx.Response) -> Mapping[str, Any]:
    """Return the problem document; empty if something other than AvatarForge answered."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        problem = json.loads(response.content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
