"""What the client tells beside the server's own messages."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from avatarforge.messages import ProfilePhotoJobStatus


class NamedJob(Protocol):
    """What names a job: a `ProfilePhotoJobStatus`, or a `JobName` where only the ids are known."""

    @property
    def customer_id(self) -> str: ...

    @property
    def job_id(self) -> str: ...


class JobName(NamedTuple):
    """A job's ids."""

    customer_id: str
    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image's file."""

    content: bytes
    media_type: str
    """Such as `image/png`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Where following begins: the customer's unfinished jobs, or the one job that is followed."""

    seq: int
    jobs: tuple[ProfilePhotoJobStatus, ...]
    reset: bool
    """The log no longer reaches back to where this client was: some changes were missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A change of a job, under its number in the event log."""

    seq: int
    job: ProfilePhotoJobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """A step of a running job. Live only: it is never told again."""

    job: ProfilePhotoJobStatus
    preview: bytes | None
    """A small picture (WebP), where previews were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """A job was erased: nothing but its ids is left."""

    seq: int
    customer_id: str
    job_id: str


News = Snapshot | Changed | Progressed | Erased
"""What `watch` yields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A verified call: the job's end."""

    webhook_id: str
    """The same in every call about this event: keep it to tell a repetition."""
    sent_at: datetime
    job: ProfilePhotoJobStatus
