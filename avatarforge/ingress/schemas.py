"""The messages that clients see: camelCase, times in RFC 3339 and UTC, the same on every channel."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import Crop, ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.ingress.health import Readiness
from avatarforge.ingress.view import LiveJob


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]


class Message(BaseModel):
    """A JSON object of the public interface."""

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
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


class Timings(Message):
    """Where the job's time went, in seconds; null where it is not known."""

    queued: float | None = None
    fetch: float | None = None
    encode: float | None = None
    steps: float | None = None
    decode: float | None = None
    upload: float | None = None


class ProfilePhotoJobStatus(Message):
    """Where a job stands."""

    job_id: str
    customer_id: str
    status: ProcessingStatus
    is_terminal: bool
    """DONE, FAILED and CANCELLED are terminal: nothing changes any more."""
    progress: Progress | None
    """Live steps while PROCESSING; not stored."""
    eta_seconds: float | None
    """Estimate until the job is finished."""
    queue_position: int | None
    """1 is the next job to start; only while PENDING."""
    original_url: str | None
    generated_url: str | None
    """Null until the job is DONE."""
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


class PhotoPage(Message):
    photos: tuple[ProfilePhotoJobStatus, ...]
    """Newest first."""
    next: str | None
    """Path of the next page; null on the last."""


class Customer(Message):
    customer_id: str
    created_at: Time
    photo_count: int
    latest_photo: ProfilePhotoJobStatus | None


class CustomerPage(Message):
    customers: tuple[Customer, ...]
    """In the order of their ids, byte by byte."""
    next: str | None
    """Path of the next page; null on the last."""


class CustomerWithPhotos(Customer):
    photos: tuple[ProfilePhotoJobStatus, ...]
    """The newest photos, newest first."""
    next: str | None
    """Path of the rest of the photos; null when these are all."""


class StyleMessage(Message):
    name: str
    """What the field `style` of an upload takes."""
    title: str
    prompt: str
    """The template; `{prompt}` stands for the client's words."""


class DefaultsMessage(Message):
    steps: int
    strength: float
    guidance: float
    prompt: str
    """For an upload with neither prompt nor style."""
    negative_prompt: str


class ModelMessage(Message):
    name: str
    title: str
    family: str
    licence: str
    size: int
    """Side of the square avatars, in pixels."""
    defaults: DefaultsMessage
    styles: tuple[StyleMessage, ...]


class ModelList(Message):
    models: tuple[ModelMessage, ...]


class StyleList(Message):
    model: str
    styles: tuple[StyleMessage, ...]


class PartMessage(Message):
    ok: bool
    detail: str
    ms: float
    """How long the answer took, in milliseconds; for the tracker how long ago it was."""


class ReadinessMessage(Message):
    ready: bool
    parts: dict[str, PartMessage]


class Alive(Message):
    status: str = "ok"


class Problem(Message):
    """RFC 9457. Further members hold facts, such as `field`, `value`, `expected` or `limit`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    """What was wrong, with what value, and what would be right."""
    instance: str
    code: str
    """Stable; programs may rely on it."""


def photo_url(job: ProfilePhotoJob, resource: str) -> str:
    """Path of one of the job's resources: `status`, `original` or `generated`."""
    return f"/customers/{job.customer_id}/photos/{job.job_id}/{resource}"


def status_message(live: LiveJob) -> ProfilePhotoJobStatus:
    """The job as every channel tells it."""
    job, outcome = live.job, live.job.outcome
    return ProfilePhotoJobStatus.model_construct(
        job_id=job.job_id,
        customer_id=job.customer_id,
        status=job.status,
        is_terminal=job.status.is_terminal,
        progress=_progress(live.progress),
        eta_seconds=live.eta_seconds if live.eta_seconds is None else round(live.eta_seconds, 1),
        queue_position=live.queue_position,
        original_url=photo_url(job, "original"),
        generated_url=photo_url(job, "generated") if outcome else None,
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
    )


def model_message(manifest: Manifest) -> ModelMessage:
    return ModelMessage(
        name=manifest.name,
        title=manifest.title,
        family=manifest.family,
        licence=manifest.licence,
        size=manifest.size,
        defaults=DefaultsMessage(**manifest.defaults.model_dump()),
        styles=style_messages(manifest),
    )


def style_messages(manifest: Manifest) -> tuple[StyleMessage, ...]:
    return tuple(
        StyleMessage(name=name, title=style.title, prompt=style.prompt)
        for name, style in manifest.styles.items()
    )


def readiness_message(readiness: Readiness) -> ReadinessMessage:
    parts = {
        name: PartMessage(ok=part.ok, detail=part.detail, ms=part.ms)
        for name, part in readiness.parts.items()
    }
    return ReadinessMessage(ready=readiness.ready, parts=parts)


def _progress(progress: GenerationProgress | None) -> Progress | None:
    if progress is None or not progress.total_steps:
        return None
    return Progress(step=progress.step, total_steps=progress.total_steps)
