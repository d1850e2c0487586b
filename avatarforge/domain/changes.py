"""The content of a commit: a job as it becomes, the event that says so, and the client's idempotency key."""

from dataclasses import dataclass, replace
from datetime import timedelta

from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.status import EventKind, JobEvent

LIFETIME = timedelta(days=1)
"""How long a key is remembered."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyKey:
    """A key and what was sent under it."""

    key: str
    fingerprint: str
    """A digest of the upload: of its photo and its fields."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class KnownKey:
    """A key that is on record."""

    fingerprint: str
    job_id: str


@pickle_by_name
@dataclass(frozen=True, slots=True)
class Fence:
    """A tracker's right to write for a shard: it ends when another tracker raises the shard's epoch."""

    shard: int
    epoch: int


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class JobChange:
    """A job's new value and its log entry. They are written in one transaction or not at all."""

    job: ProfilePhotoJob
    event: JobEvent
    idempotency_key: IdempotencyKey | None = None
    """Of a submission: the client's name for it, written with it."""

    @property
    def is_submission(self) -> bool:
        return self.event.kind is EventKind.SUBMITTED

    @property
    def is_erasure(self) -> bool:
        return self.event.kind is EventKind.ERASED

    def with_seq(self, seq: int) -> "JobChange":
        """Return the same change under the number that the database has given its event."""
        return replace(self, job=replace(self.job, seq=seq), event=replace(self.event, seq=seq))

    def to_logged_change(self) -> "LoggedChange":
        """Return the change in the form in which the log gives it back."""
        return LoggedChange(event=self.event, job=None if self.is_erasure else self.job)


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A submission: a job that nobody has kept yet, and the client's name for it."""

    job: ProfilePhotoJob
    idempotency_key: IdempotencyKey | None = None


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class LogBounds:
    """The bounds of a shard's log."""

    pruned_seq: int
    """Events up to this number have been removed for their age; 0 before the first was."""
    latest_seq: int
    """The number of the last event; 0 before the first."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectDeletion:
    """Objects that have to go from storage: written in the transaction that erases their job."""

    deletion_id: int
    prefix: str
    """The beginning of the objects' keys."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class KeptObjects:
    """The objects that a job on record names."""

    is_terminal: bool
    keys: frozenset[str]

    def is_orphan(self, key: str) -> bool:
        """Tell whether the job names no such object, and will not."""
        return self.is_terminal and key not in self.keys


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedChange:
    """An entry of the log as it is read back."""

    event: JobEvent
    job: ProfilePhotoJob | None
    """The job as this change left it; `None` in every entry of a job that is erased."""
