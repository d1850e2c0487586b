"""The states of a job, the moves between them, and the events that record them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from avatarforge.domain.pickling import pickle_by_name


class ProcessingStatus(StrEnum):
    """Where a job stands. `DONE`, `FAILED` and `CANCELLED` are terminal."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return not NEXT[self]


NEXT: dict[ProcessingStatus, frozenset[ProcessingStatus]] = {
    ProcessingStatus.PENDING: frozenset(
        # FAILED straight from PENDING: a job whose last attempt was lost is not started again.
        {ProcessingStatus.PROCESSING, ProcessingStatus.CANCELLED, ProcessingStatus.FAILED}
    ),
    ProcessingStatus.PROCESSING: frozenset(
        {ProcessingStatus.PENDING, ProcessingStatus.DONE, ProcessingStatus.FAILED, ProcessingStatus.CANCELLED}
    ),
    ProcessingStatus.DONE: frozenset(),
    ProcessingStatus.FAILED: frozenset(),
    ProcessingStatus.CANCELLED: frozenset(),
}
"""The legal moves: from a state to each of the states it may become."""


class EventKind(StrEnum):
    """A kind of change of a job."""

    SUBMITTED = "submitted"
    STARTED = "started"
    REQUEUED = "requeued"
    IMAGE = "image"
    """One of several images is there; the last one comes with `DONE`."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    KEPT = "kept"
    """The client has chosen an image; the status stays."""
    ERASED = "erased"
    """A tombstone: ids and `seq` stay, rows and objects go."""


TERMINAL_EVENTS = frozenset({EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED})


@pickle_by_name
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
