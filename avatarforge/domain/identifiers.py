"""Job ids: UUIDs of version 7 (RFC 9562, section 5.7), so that ids sort by the time they were made."""

from datetime import datetime
from uuid import UUID

from uuid6 import uuid7


def new_job_id() -> str:
    """A fresh id in its canonical form of 36 characters."""
    return str(uuid7())


def first_job_id(time: datetime) -> str:
    """What the ids made before that time sort before: by its milliseconds, in the place that they have."""
    milliseconds = int(time.timestamp() * 1000)
    return str(UUID(int=milliseconds << 80 | 0x7000 << 64 | 0x8000 << 48))


def is_job_id(text: str) -> bool:
    """Whether the text is a UUID in canonical form; anything else names no job."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
