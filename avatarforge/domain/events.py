"""The event log's entries: one row for every change of a job."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from avatarforge.domain.status import ProcessingStatus


class EventKind(StrEnum):
    """What happened to a job."""

    SUBMITTED = "submitted"
    STARTED = "started"
    REQUEUED = "requeued"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ERASED = "erased"
    """A tombstone: ids and `seq` stay, rows and objects go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """One change of one job. `seq` is 0 until the database has numbered it."""

    job_id: str
    customer_id: str
    revision: int
    kind: EventKind
    status: ProcessingStatus
    attempt: int
    at: datetime
    seq: int = 0
