"""The message that every channel tells of a job: camelCase, times in RFC 3339 and UTC."""

from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import Crop, ProfilePhotoJob, RequestedParameters
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.status import ProcessingStatus


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


Time = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


PUBLIC_PREFIX: ContextVar[str] = ContextVar("PUBLIC_PREFIX", default="")
"""What a proxy in front has before our paths: set while a request is answered, or a webhook is written."""

PublicPath = Annotated[str, PlainSerializer(lambda path: PUBLIC_PREFIX.get() + path, return_type=str)]
"""A path of ours, which is told with the prefix."""


class Message(BaseModel):
    """A JSON object of the public interface."""

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        from_attributes=True,
    )

    def json_bytes(self) -> bytes:
        """The message as it goes over the wire."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True)


class Progress(Message):
    step: int
    """Denoising steps done."""
    total_steps: int


class Failure(Message):
    code: str
    """Stable; programs may rely on it."""
    message: str
    """For people."""


class Image(Message):
    """One image of a job."""

    index: int
    """Its place among the job's images, from 0."""
    seed: int
    style: str | None
    generated_url: PublicPath


class Timings(Message):
    """Where the job's time went, in seconds; null where it is not known."""

    queued: float | None = None
    fetch: float | None = None
    encode: float | None = None
    steps: float | None = None
    decode: float | None = None
    upload: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters(RequestedParameters):
    """The parameters of the upload. Null where it left one to the model, or set no limit."""

    __pydantic_config__ = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        serialize_by_alias=True,
        json_schema_serialization_defaults_required=True,
    )

    priority: int


class ProfilePhotoJobStatus(Message):
    """Where a job stands."""

    # Only clients meet the defaults, those of `images` and `kept`, in the messages of a server that is older.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    job_id: str
    customer_id: str
    status: ProcessingStatus
    is_terminal: bool
    """DONE, FAILED and CANCELLED are terminal: nothing changes any more, but for what the client keeps."""
    progress: Progress | None
    """Live steps while PROCESSING, of all images together; not stored."""
    eta_seconds: float | None
    """Estimate until the job is finished."""
    queue_position: int | None
    """1 is the next job to start; only while PENDING."""
    original_url: PublicPath | None
    generated_url: PublicPath | None
    """The image that is kept, else the first; null until the job is DONE."""
    images: tuple[Image, ...] = ()
    """Those that are there, by index: while it is PROCESSING they become more; the end leaves them as they
    are."""
    kept: int | None = None
    """The index of the image that the client keeps; null until it chose."""
    callback_url: str | None
    error: Failure | None
    attempt: int
    """How often the job was started."""
    retry_of: str | None
    backend: str | None
    """What made the avatar; null until the job is DONE."""
    model: str | None
    """The checkpoint that made the avatar; null until the job is DONE."""
    seed: int
    crop: Crop | None
    """Whether the square was cut around a face or from the centre; null until the job is DONE."""
    seq: int
    """The number of the job's last change in the event log."""
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    timings: Timings
    parameters: Parameters


_REQUESTED = [field.name for field in fields(RequestedParameters)]
_get_requested = attrgetter(*_REQUESTED)


def photo_url(job: ProfilePhotoJob, resource: str) -> str:
    """Path of one of the job's resources: `status`, `original`, `generated` or `generated/{index}`."""
    return f"/customers/{job.customer_id}/photos/{job.job_id}/{resource}"


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class LiveJob:
    """A job with what only lives in memory."""

    job: ProfilePhotoJob
    progress: GenerationProgress | None = None
    queue_position: int | None = None
    """1 is next; `None` if it does not wait, or is beyond the reported part of the queue."""
    eta_seconds: float | None = None
    """Seconds until it is done, as far as can be told; `None` while nothing was measured."""

    def to_message(self) -> ProfilePhotoJobStatus:
        """Build the message of the job, the same for every channel."""
        job, outcome = self.job, self.job.outcome
        return ProfilePhotoJobStatus.model_construct(
            job_id=job.job_id,
            customer_id=job.customer_id,
            status=job.status,
            is_terminal=job.status.is_terminal,
            progress=_progress(self.progress),
            eta_seconds=None if self.eta_seconds is None else round(self.eta_seconds, 1),
            queue_position=self.queue_position,
            original_url=photo_url(job, "original"),
            generated_url=photo_url(job, "generated") if outcome else None,
            images=tuple(
                Image.model_construct(
                    index=image.index,
                    seed=image.seed,
                    style=image.style,
                    generated_url=photo_url(job, f"generated/{image.index}"),
                )
                for image in job.images
            ),
            kept=job.kept,
            callback_url=job.callback_url,
            error=Failure(code=job.error.code, message=job.error.message) if job.error else None,
            attempt=job.attempt,
            retry_of=job.retry_of,
            backend=outcome.backend if outcome else None,
            model=outcome.model if outcome else None,
            seed=job.parameters.seed,
            crop=outcome.crop if outcome else None,
            seq=job.seq,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            timings=Timings(**job.timings),
            parameters=_parameters(job),
        )


def _parameters(job: ProfilePhotoJob) -> Parameters:
    return Parameters(
        **dict(zip(_REQUESTED, _get_requested(job.parameters), strict=True)), priority=job.priority
    )


def _progress(progress: GenerationProgress | None) -> Progress | None:
    if progress is None or not progress.total_steps:
        return None
    return Progress(step=progress.step, total_steps=progress.total_steps)
