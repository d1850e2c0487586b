"""What one commit writes: a job as it becomes, and the event that says so."""

from dataclasses import dataclass, replace

from avatarforge.domain.events import EventKind, JobEvent
from avatarforge.domain.jobs import ProfilePhotoJob


@dataclass(frozen=True, kw_only=True, slots=True)
class JobChange:
    """A job's new value and its log entry. They are written in one transaction or not at all."""

    job: ProfilePhotoJob
    event: JobEvent

    @property
    def is_submission(self) -> bool:
        return self.event.kind is EventKind.SUBMITTED

    @property
    def is_erasure(self) -> bool:
        return self.event.kind is EventKind.ERASED

    def numbered(self, seq: int) -> "JobChange":
        """The same change once the database has given its event a number."""
        return JobChange(job=replace(self.job, seq=seq), event=replace(self.event, seq=seq))

    def logged(self) -> "LoggedChange":
        """As the log gives it back."""
        return LoggedChange(event=self.event, job=None if self.is_erasure else self.job)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedChange:
    """An entry of the log as it is read back."""

    event: JobEvent
    job: ProfilePhotoJob | None
    """The job as this change left it; `None` in every entry of a job that is erased."""
