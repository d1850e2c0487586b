"""What one commit writes: a job as it becomes, and the event that says so."""

from dataclasses import dataclass, replace

from avatarforge.domain.events import EventKind, JobEvent
from avatarforge.domain.idempotency import IdempotencyKey
from avatarforge.domain.jobs import ProfilePhotoJob


@dataclass(frozen=True, slots=True)
class Fence:
    """A tracker's right to write for a shard: it ends when another tracker raises the shard's epoch."""

    shard: int
    epoch: int


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

    def numbered(self, seq: int) -> "JobChange":
        """The same change once the database has given its event a number."""
        return replace(self, job=replace(self.job, seq=seq), event=replace(self.event, seq=seq))

    def logged(self) -> "LoggedChange":
        """As the log gives it back."""
        return LoggedChange(event=self.event, job=None if self.is_erasure else self.job)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """What is submitted: a job that nobody has kept yet, and the client's name for it."""

    job: ProfilePhotoJob
    idempotency_key: IdempotencyKey | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogBounds:
    """What a shard's log holds."""

    pruned_seq: int
    """Events up to this number have been removed for their age; 0 before the first was."""
    latest_seq: int
    """The number of the last event; 0 before the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectDeletion:
    """Objects that have to go from storage: written in the transaction that erases their job."""

    deletion_id: int
    prefix: str
    """The beginning of the objects' keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptObjects:
    """The objects that a job on record names."""

    is_terminal: bool
    keys: frozenset[str]

    def is_orphan(self, key: str) -> bool:
        """Whether an object of the job is none that it names, or may come to name."""
        return self.is_terminal and key not in self.keys


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedChange:
    """An entry of the log as it is read back."""

    event: JobEvent
    job: ProfilePhotoJob | None
    """The job as this change left it; `None` in every entry of a job that is erased."""
