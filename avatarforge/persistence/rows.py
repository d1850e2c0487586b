"""Jobs as rows and as the JSON of a snapshot, deliveries as rows, and back."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import RowMapping

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.deliveries import DeliveryAttempt, WebhookDelivery
from avatarforge.domain.jobs import AvatarImage, GenerationParameters, ProfilePhotoJob, StoredImage
from avatarforge.domain.status import TERMINAL_EVENTS, JobEvent

Row = Mapping[str, Any] | RowMapping

# Not `dataclasses.asdict`, which copies deeply: it took a third of a commit's time.
_JOB = TypeAdapter(ProfilePhotoJob)
_PARAMETERS = TypeAdapter(GenerationParameters)
_IMAGE = TypeAdapter(StoredImage)
_VARIANTS = TypeAdapter(tuple[AvatarImage, ...])
_EVENT = TypeAdapter(JobEvent)
_DELIVERY = TypeAdapter(WebhookDelivery)
_ATTEMPT = TypeAdapter(DeliveryAttempt)


class PhotoKind(StrEnum):
    """Which of a job's images a row of `profile_photos` tells of."""

    ORIGINAL = "original"
    AVATAR = "avatar"


# --- jobs ---------------------------------------------------------------------------------------------


def job_row(job: ProfilePhotoJob, seq: int) -> dict[str, Any]:
    """The job's row of `profile_photo_jobs`, last changed by event `seq`."""
    return {
        "customer_id": job.customer_id,
        "priority": job.priority,
        "callback_url": job.callback_url,
        "retry_of": job.retry_of,
        "parameters": _PARAMETERS.dump_python(job.parameters, mode="json"),
        "created_at": job.created_at,
        "job_id": job.job_id,
        **progress_row(job, seq),
    }


def progress_row(job: ProfilePhotoJob, seq: int) -> dict[str, Any]:
    """The columns that moves of a job change."""
    outcome, error = job.outcome, job.error
    return {
        "status": job.status.value,
        "revision": job.revision,
        "seq": seq,
        "attempt": job.attempt,
        "losses": job.worker_losses,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "timings": dict(job.timings),
        "model": outcome and outcome.model,
        "backend": outcome and outcome.backend,
        "crop": outcome and outcome.crop.value,
        "generation_timings": outcome and dict(outcome.timings),
        "error_code": error and error.code,
        "error_message": error and error.message,
        "images": _VARIANTS.dump_python(job.variant_images, mode="json") or None,
        "kept": job.kept,
    }


def photo_row(job: ProfilePhotoJob, kind: PhotoKind, image: StoredImage) -> dict[str, Any]:
    """The image's row of `profile_photos`."""
    return {
        "job_id": job.job_id,
        "kind": kind.value,
        "object_key": image.key,
        **_IMAGE.dump_python(image, exclude={"key"}),
    }


def job_from_row(row: Row) -> ProfilePhotoJob:
    """The job of a row that holds its own columns and those of its photos as `original_…` and `avatar_…`."""
    outcome = (
        None
        if row["model"] is None
        else {**row, "avatar": _image_from_row(row, PhotoKind.AVATAR), "timings": row["generation_timings"]}
    )
    error = {"code": row["error_code"], "message": row["error_message"]}
    return _JOB.validate_python(
        {
            **row,
            "worker_losses": row["losses"],
            "original": _image_from_row(row, PhotoKind.ORIGINAL),
            "outcome": outcome,
            "error": None if row["error_code"] is None else error,
            "variant_images": row["images"] or (),
        }
    )


def list_variant_keys(images: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return the objects' keys in a row's column `images`."""
    return [image["stored"]["key"] for image in images or ()]


def _image_from_row(row: Row, kind: PhotoKind) -> StoredImage:
    return StoredImage(
        key=row[f"{kind}_object_key"],
        media_type=row[f"{kind}_media_type"],
        size=row[f"{kind}_size"],
        sha256=row[f"{kind}_sha256"],
        width=row[f"{kind}_width"],
        height=row[f"{kind}_height"],
    )


# --- events -------------------------------------------------------------------------------------------


def event_row(shard: int, change: JobChange, *, with_snapshot: bool) -> dict[str, Any]:
    """The change's row of `job_events`, without the `seq` that the database gives it."""
    event = change.event
    return {
        "shard": shard,
        **_EVENT.dump_python(event, exclude={"seq"}),
        "snapshot": snapshot(change.job) if with_snapshot else None,
        "terminal_job_id": event.job_id if event.kind in TERMINAL_EVENTS else None,
    }


def event_from_row(row: Row) -> JobEvent:
    return _EVENT.validate_python({**row})


def log_entry_from_row(row: Row) -> LoggedChange:
    event, taken = event_from_row(row), row["snapshot"]
    return LoggedChange(event=event, job=None if taken is None else job_from_snapshot(taken, event.seq))


def snapshot(job: ProfilePhotoJob) -> dict[str, Any]:
    """The whole job as JSON can hold it, but for `seq`, which its event's row has."""
    taken: dict[str, Any] = _JOB.dump_python(job, mode="json", exclude={"seq"})
    taken["losses"] = taken.pop("worker_losses")
    return taken


def job_from_snapshot(taken: Mapping[str, Any], seq: int) -> ProfilePhotoJob:
    """The job as it was. Raises `KeyError` or `ValueError` for what is no snapshot."""
    return _JOB.validate_python({**taken, "worker_losses": taken["losses"], "seq": seq})


# --- deliveries ---------------------------------------------------------------------------------------


def delivery_row(shard: int, delivery: WebhookDelivery) -> dict[str, Any]:
    """The delivery's row of `webhook_deliveries`."""
    return {"shard": shard, **_DELIVERY.dump_python(delivery)}


def delivery_progress_row(delivery: WebhookDelivery) -> dict[str, Any]:
    """The columns that calls of the receiver change."""
    return {"state": delivery.state.value, "tries": delivery.tries, "next_at": delivery.next_at}


def delivery_from_row(row: Row) -> WebhookDelivery:
    return _DELIVERY.validate_python({**row})


def attempt_row(delivery_id: str, number: int, attempt: DeliveryAttempt) -> dict[str, Any]:
    """The attempt's row of `webhook_attempts`."""
    return {"delivery_id": delivery_id, "number": number, **_ATTEMPT.dump_python(attempt)}


def attempt_from_row(row: Row) -> DeliveryAttempt:
    return _ATTEMPT.validate_python({**row})
