"""The states of a job and the moves between them."""

from enum import StrEnum


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
        {
            ProcessingStatus.PENDING,
            ProcessingStatus.DONE,
            ProcessingStatus.FAILED,
            ProcessingStatus.CANCELLED,
        }
    ),
    ProcessingStatus.DONE: frozenset(),
    ProcessingStatus.FAILED: frozenset(),
    ProcessingStatus.CANCELLED: frozenset(),
}
"""The legal moves: from a state to each of the states it may become."""
