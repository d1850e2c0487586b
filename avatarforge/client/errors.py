"""What the client raises. `Refused` and its kinds carry the server's stable `code`."""

from collections.abc import Mapping
from typing import Any

from avatarforge.messages import ProfilePhotoJobStatus


class ClientError(Exception):
    """Base of what the client raises."""


class ServerUnreachable(ClientError):
    """Nothing answers at the server's address, or it stopped in the middle of an answer."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"No AvatarForge answers at {self.url} ({self.reason})."


class UnexpectedAnswer(ClientError):
    """What answers is no AvatarForge, or one that this client does not understand."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"{self.url} does not answer as AvatarForge does: {self.reason}."


class Refused(ClientError):
    """The server answered with a problem document (RFC 9457). Where no kind below fits, it is at fault."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        facts: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, facts, retry_after)
        self.status = status
        """The HTTP status."""
        self.code = code
        """Stable; programs may rely on it. `unknown` where the answer was no problem document."""
        self.detail = detail
        """For people: what was wrong, with what value, and what would be right."""
        self.facts = dict(facts or {})
        """The problem's further members, such as `field`, `value` and `expected`."""
        self.retry_after = retry_after
        """Seconds after which the server asks to try again; `None` where it does not say."""

    def __str__(self) -> str:
        return self.detail


class InvalidInput(Refused):
    """The request is at fault: sending it again would end the same way."""


class NotAllowed(Refused):
    """The API key is missing, unknown or not for this."""


class NotFound(Refused):
    """There is no such customer, job, image or delivery."""


class Conflict(Refused):
    """The job's state does not allow this."""


class TryLater(Refused):
    """The server is busy or a part of it is not available; nothing was kept."""


class JobFailed(ClientError):
    """The job ended without an avatar."""

    def __init__(self, job: ProfilePhotoJobStatus) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        reason = f": {self.job.error.message}" if self.job.error else "."
        return f"Job {self.job.job_id} is {self.job.status}{reason}"


class StillRunning(ClientError):
    """The job did not end in the time that was given; it goes on."""

    def __init__(self, job: ProfilePhotoJobStatus, seconds: float) -> None:
        super().__init__(job, seconds)
        self.job, self.seconds = job, seconds

    def __str__(self) -> str:
        return f"Job {self.job.job_id} is still {self.job.status} after {self.seconds:g} s."


class InvalidWebhook(ClientError):
    """A call that claims to be a webhook is not signed with any of the secrets, is old, or is no webhook."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The webhook is not to be trusted: {self.reason}."
