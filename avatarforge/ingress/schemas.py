"""The messages of the REST interface, beside the one of a job that every channel tells."""

from pydantic import ConfigDict

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.domain.deliveries import DeliveryReport, DeliveryState
from avatarforge.ingress.health import Readiness
from avatarforge.ingress.news import LiveJob
from avatarforge.messages import Message, ProfilePhotoJobStatus, Time, job_message


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


class DeliveryAttemptMessage(Message):
    at: Time
    seconds: float
    """How long the call took."""
    status: int | None
    """The receiver's HTTP status; null where no answer came."""
    answer: str
    """The beginning of the answer's body, or what went wrong."""


class DeliveryMessage(Message):
    delivery_id: str
    """Also the `webhook-id` of every call."""
    seq: int
    """The number of the event that is told."""
    url: str
    state: DeliveryState
    created_at: Time
    next_at: Time | None
    """When it is called next; null unless PENDING."""
    attempts: tuple[DeliveryAttemptMessage, ...]
    """Calls, oldest first."""


class DeliveryList(Message):
    deliveries: tuple[DeliveryMessage, ...]


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


def status_message(live: LiveJob) -> ProfilePhotoJobStatus:
    """The job as every channel tells it."""
    return job_message(
        live.job,
        progress=live.progress,
        queue_position=live.queue_position,
        eta_seconds=live.eta_seconds,
    )


def delivery_message(report: DeliveryReport) -> DeliveryMessage:
    delivery = report.delivery
    attempts = tuple(
        DeliveryAttemptMessage(at=call.at, seconds=call.seconds, status=call.status, answer=call.answer)
        for call in report.attempts
    )
    return DeliveryMessage(
        delivery_id=delivery.delivery_id,
        seq=delivery.seq,
        url=delivery.url,
        state=delivery.state,
        created_at=delivery.created_at,
        next_at=delivery.next_at,
        attempts=attempts,
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
