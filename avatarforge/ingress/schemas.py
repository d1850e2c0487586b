"""What only the server knows of its messages: how they are made, and those about its own health.

Those that clients read are in `messages` and `rest_messages`.
"""

from pydantic import ConfigDict

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.domain.deliveries import DeliveryReport
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.ingress.health import Readiness
from avatarforge.ingress.news import LiveJob
from avatarforge.messages import Message, ProfilePhotoJobStatus, job_message
from avatarforge.rest_messages import (
    DefaultsMessage,
    DeliveryAttemptMessage,
    DeliveryMessage,
    ModelFailureMessage,
    ModelMessage,
    ReplicaMessage,
    ServedModelMessage,
    StyleMessage,
)


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


def replica_message(report: ReplicaReport) -> ReplicaMessage:
    model, failure = report.model, report.failure
    return ReplicaMessage(
        replica_id=report.replica_id,
        backend=report.backend,
        state=report.state.value,
        reported_at=report.at,
        wish=report.wish,
        model=model
        and ServedModelMessage(
            name=model.name,
            fingerprint=model.fingerprint,
            since=model.since,
            load_seconds=model.load_seconds,
            dtype=model.dtype,
        ),
        failure=failure and ModelFailureMessage(model=failure.model, reason=failure.reason, at=failure.at),
        device=report.device,
        limit=report.limit,
        active=report.active,
        waiting=report.waiting,
        step_seconds={str(images): seconds for images, seconds in report.step_seconds.items()},
        mean_images=report.mean_images,
        steps_by_images={str(images): times for images, times in sorted(report.steps_by_images.items())},
        pictures=report.pictures,
        busy_seconds=report.busy_seconds,
        memory_bytes=report.memory,
        cached_embeddings=report.cached_embeddings,
        circuit=report.circuit,
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
