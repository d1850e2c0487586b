"""A job: one request for one avatar, from upload to its terminal state."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from avatarforge.domain.errors import IllegalTransition
from avatarforge.domain.events import EventKind, JobEvent
from avatarforge.domain.status import NEXT, ProcessingStatus


class ImageFormat(StrEnum):
    """What an avatar can be written as."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


class Crop(StrEnum):
    """How the square was cut from the photo."""

    FACE = "face"
    CENTRE = "centre"


class Stage(StrEnum):
    """The parts of a job's time, in seconds each."""

    QUEUED = "queued"
    FETCH = "fetch"
    ENCODE = "encode"
    STEPS = "steps"
    DECODE = "decode"
    UPLOAD = "upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationParameters:
    """What the client asked for. `None` means: as the model's manifest says."""

    seed: int
    prompt: str = ""
    negative_prompt: str = ""
    style: str | None = None
    strength: float | None = None
    steps: int | None = None
    guidance: float | None = None
    format: ImageFormat = ImageFormat.PNG
    allow_remote: bool = True
    """Whether the photo may go to a server that is not ours."""
    cut_face: bool = True
    """Whether a square around the face is cut; else a square photo is taken as it is."""
    timeout_seconds: float | None = None
    """How long after its upload the job fails unless it has ended; `None` for no limit."""
    start_timeout_seconds: float | None = None
    """How long after its upload the job fails unless it was started once; `None` for no limit."""
    traceparent: str | None = None
    """The trace that the upload belongs to, as W3C's header has it; `None` unless it is traced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """An object in storage."""

    key: str
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed: a stable code and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a finished generation tells: the avatar and how it came about."""

    avatar: StoredImage
    model: str
    backend: str
    crop: Crop
    timings: Mapping[str, float]
    """Seconds by `Stage`, without `queued`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilePhotoJob:
    """One request for one avatar. Every change makes a new value and one `JobEvent`."""

    job_id: str
    customer_id: str
    parameters: GenerationParameters
    original: StoredImage
    created_at: datetime
    status: ProcessingStatus = ProcessingStatus.PENDING
    revision: int = 1
    """Counts the job's events from 1: with the job's id it names a change before its `seq` is known."""
    seq: int = 0
    """The number of the job's last event in the log; 0 until the first is committed."""
    priority: int = 0
    """Higher goes first."""
    callback_url: str | None = None
    retry_of: str | None = None
    attempt: int = 0
    """How often the job was dispatched: the fence. Only the current attempt may publish."""
    losses: int = 0
    """How many attempts ended with a lost worker."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    error: JobError | None = None
    timings: Mapping[str, float] = field(default_factory=dict)

    # --- moves: each returns the job as it becomes ---------------------------------------------------

    def started(self, at: datetime) -> "ProfilePhotoJob":
        """Dispatched once more: the attempt number rises."""
        return self._moved(
            ProcessingStatus.PROCESSING, attempt=self.attempt + 1, started_at=self.started_at or at
        )

    def requeued(self, *, lost: bool) -> "ProfilePhotoJob":
        """Waiting again. `lost` when a worker died with it, not when the work was taken back."""
        return self._moved(ProcessingStatus.PENDING, losses=self.losses + lost)

    def done(self, outcome: Outcome, at: datetime) -> "ProfilePhotoJob":
        """Published."""
        # Not below 0: the clock may have been put back since.
        queued = max(0.0, ((self.started_at or at) - self.created_at).total_seconds())
        return self._moved(
            ProcessingStatus.DONE,
            outcome=outcome,
            finished_at=at,
            timings={Stage.QUEUED.value: round(queued, 6), **outcome.timings},
        )

    def failed(self, error: JobError, at: datetime) -> "ProfilePhotoJob":
        return self._moved(ProcessingStatus.FAILED, error=error, finished_at=at)

    def cancelled(self, at: datetime) -> "ProfilePhotoJob":
        return self._moved(ProcessingStatus.CANCELLED, finished_at=at)

    def erased(self) -> "ProfilePhotoJob":
        """On its way out: the tombstone's value. Its state stays what it was."""
        return replace(self, revision=self.revision + 1)

    def _moved(self, wanted: ProcessingStatus, **changes: object) -> "ProfilePhotoJob":
        if wanted not in NEXT[self.status]:
            raise IllegalTransition(self.status, wanted)
        return replace(self, status=wanted, revision=self.revision + 1, **changes)  # type: ignore[arg-type]  # each caller names fields of this class

    # --- the log -----------------------------------------------------------------------------------

    def event(self, kind: EventKind, at: datetime) -> JobEvent:
        """The entry of the log that this value of the job stands for; its `seq` comes with the commit."""
        return JobEvent(
            job_id=self.job_id,
            customer_id=self.customer_id,
            revision=self.revision,
            kind=kind,
            status=self.status,
            attempt=self.attempt,
            at=at,
        )
