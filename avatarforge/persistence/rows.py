"""Jobs as rows and as the JSON of a snapshot, deliveries as rows, and back."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping

from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.domain.events import EventKind, JobEvent
from avatarforge.domain.jobs import (
    Crop,
    GenerationParameters,
    ImageFormat,
    JobError,
    Outcome,
    ProfilePhotoJob,
    StoredImage,
)
from avatarforge.domain.status import ProcessingStatus

Row = Mapping[str, Any] | RowMapping


class PhotoKind(StrEnum):
    """Which of a job's images a row of `profile_photos` tells of."""

    ORIGINAL = "original"
    AVATAR = "avatar"


TERMINAL_EVENTS = frozenset({EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED})

# --- jobs ---------------------------------------------------------------------------------------------


def job_row(job: ProfilePhotoJob, seq: int) -> dict[str, Any]:
    """The job's row of `profile_photo_jobs`, last changed by event `seq`."""
    return {
        "customer_id": job.customer_id,
        "priority": job.priority,
        "callback_url": job.callback_url,
        "retry_of": job.retry_of,
        "parameters": _parameters(job.parameters),
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
        "losses": job.losses,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "timings": dict(job.timings),
        "model": outcome and outcome.model,
        "backend": outcome and outcome.backend,
        "crop": outcome and outcome.crop.value,
        "generation_timings": outcome and dict(outcome.timings),
        "error_code": error and error.code,
        "error_message": error and error.message,
    }


def photo_row(job: ProfilePhotoJob, kind: PhotoKind, image: StoredImage) -> dict[str, Any]:
    """The image's row of `profile_photos`."""
    return {
        "job_id": job.job_id,
        "kind": kind.value,
        "object_key": image.key,
        "media_type": image.media_type,
        "size": image.size,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
    }


def job_from_row(row: Row) -> ProfilePhotoJob:
    """The job of a row that holds its own columns and those of its photos as `original_…` and `avatar_…`."""
    return ProfilePhotoJob(
        job_id=row["job_id"],
        customer_id=row["customer_id"],
        parameters=_parameters_from(row["parameters"]),
        original=_image_from_row(row, PhotoKind.ORIGINAL),
        created_at=row["created_at"],
        status=ProcessingStatus(row["status"]),
        revision=row["revision"],
        seq=row["seq"],
        priority=row["priority"],
        callback_url=row["callback_url"],
        retry_of=row["retry_of"],
        attempt=row["attempt"],
        losses=row["losses"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        outcome=_outcome_from_row(row),
        error=_error_from_row(row),
        timings=row["timings"],
    )


def _error_from_row(row: Row) -> JobError | None:
    if row["error_code"] is None:
        return None
    return JobError(code=row["error_code"], message=row["error_message"])


def _outcome_from_row(row: Row) -> Outcome | None:
    if row["model"] is None:
        return None
    return Outcome(
        avatar=_image_from_row(row, PhotoKind.AVATAR),
        model=row["model"],
        backend=row["backend"],
        crop=Crop(row["crop"]),
        timings=row["generation_timings"],
    )


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
        "job_id": event.job_id,
        "customer_id": event.customer_id,
        "revision": event.revision,
        "kind": event.kind.value,
        "status": event.status.value,
        "attempt": event.attempt,
        "at": event.at,
        "snapshot": snapshot(change.job) if with_snapshot else None,
        "terminal_job_id": event.job_id if event.kind in TERMINAL_EVENTS else None,
    }


def event_from_row(row: Row) -> JobEvent:
    return JobEvent(
        job_id=row["job_id"],
        customer_id=row["customer_id"],
        revision=row["revision"],
        kind=EventKind(row["kind"]),
        status=ProcessingStatus(row["status"]),
        attempt=row["attempt"],
        at=row["at"],
        seq=row["seq"],
    )


def logged_change_from_row(row: Row) -> LoggedChange:
    event = event_from_row(row)
    taken = row["snapshot"]
    return LoggedChange(event=event, job=None if taken is None else job_from_snapshot(taken, event.seq))


# --- deliveries ---------------------------------------------------------------------------------------


def delivery_row(shard: int, delivery: WebhookDelivery) -> dict[str, Any]:
    """The delivery's row of `webhook_deliveries`."""
    return {
        "delivery_id": delivery.delivery_id,
        "shard": shard,
        "job_id": delivery.job_id,
        "customer_id": delivery.customer_id,
        "seq": delivery.seq,
        "url": delivery.url,
        "created_at": delivery.created_at,
        **delivery_progress_row(delivery),
    }


def delivery_progress_row(delivery: WebhookDelivery) -> dict[str, Any]:
    """The columns that calls of the receiver change."""
    return {"state": delivery.state.value, "tries": delivery.tries, "next_at": delivery.next_at}


def delivery_from_row(row: Row) -> WebhookDelivery:
    return WebhookDelivery(
        delivery_id=row["delivery_id"],
        job_id=row["job_id"],
        customer_id=row["customer_id"],
        seq=row["seq"],
        url=row["url"],
        created_at=row["created_at"],
        state=DeliveryState(row["state"]),
        tries=row["tries"],
        next_at=row["next_at"],
    )


def attempt_row(delivery_id: str, number: int, attempt: DeliveryAttempt) -> dict[str, Any]:
    """The attempt's row of `webhook_attempts`."""
    return {
        "delivery_id": delivery_id,
        "number": number,
        "at": attempt.at,
        "seconds": attempt.seconds,
        "status": attempt.status,
        "answer": attempt.answer,
    }


def attempt_from_row(row: Row) -> DeliveryAttempt:
    return DeliveryAttempt(at=row["at"], seconds=row["seconds"], status=row["status"], answer=row["answer"])


# --- snapshots ----------------------------------------------------------------------------------------


def snapshot(job: ProfilePhotoJob) -> dict[str, Any]:
    """The whole job as JSON can hold it, but for `seq`, which its event's row has."""
    return {
        "job_id": job.job_id,
        "customer_id": job.customer_id,
        "parameters": _parameters(job.parameters),
        "original": _image(job.original),
        "created_at": job.created_at.isoformat(),
        "status": job.status.value,
        "revision": job.revision,
        "priority": job.priority,
        "callback_url": job.callback_url,
        "retry_of": job.retry_of,
        "attempt": job.attempt,
        "losses": job.losses,
        "started_at": job.started_at and job.started_at.isoformat(),
        "finished_at": job.finished_at and job.finished_at.isoformat(),
        "outcome": job.outcome and _outcome(job.outcome),
        "error": job.error and {"code": job.error.code, "message": job.error.message},
        "timings": dict(job.timings),
    }


def job_from_snapshot(taken: Mapping[str, Any], seq: int) -> ProfilePhotoJob:
    """The job as it was. Raises `KeyError` or `ValueError` for what is no snapshot."""
    return ProfilePhotoJob(
        job_id=taken["job_id"],
        customer_id=taken["customer_id"],
        parameters=_parameters_from(taken["parameters"]),
        original=StoredImage(**taken["original"]),
        created_at=datetime.fromisoformat(taken["created_at"]),
        status=ProcessingStatus(taken["status"]),
        revision=taken["revision"],
        seq=seq,
        priority=taken["priority"],
        callback_url=taken["callback_url"],
        retry_of=taken["retry_of"],
        attempt=taken["attempt"],
        losses=taken["losses"],
        started_at=_time_from(taken["started_at"]),
        finished_at=_time_from(taken["finished_at"]),
        outcome=None if taken["outcome"] is None else _outcome_from(taken["outcome"]),
        error=None if taken["error"] is None else JobError(**taken["error"]),
        timings=taken["timings"],
    )


def _parameters(parameters: GenerationParameters) -> dict[str, Any]:
    # Field by field here and below: `dataclasses.asdict` copies deeply, a third of a commit's time.
    return {
        "seed": parameters.seed,
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "style": parameters.style,
        "strength": parameters.strength,
        "steps": parameters.steps,
        "guidance": parameters.guidance,
        "format": parameters.format.value,
        "allow_remote": parameters.allow_remote,
        "cut_face": parameters.cut_face,
        "timeout_seconds": parameters.timeout_seconds,
        "start_timeout_seconds": parameters.start_timeout_seconds,
        **({} if parameters.traceparent is None else {"traceparent": parameters.traceparent}),
    }


def _parameters_from(stored: Mapping[str, Any]) -> GenerationParameters:
    return replace(GenerationParameters(**stored), format=ImageFormat(stored["format"]))


def _image(image: StoredImage) -> dict[str, Any]:
    return {
        "key": image.key,
        "media_type": image.media_type,
        "size": image.size,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "avatar": _image(outcome.avatar),
        "model": outcome.model,
        "backend": outcome.backend,
        "crop": outcome.crop.value,
        "timings": dict(outcome.timings),
    }


def _outcome_from(stored: Mapping[str, Any]) -> Outcome:
    return Outcome(
        avatar=StoredImage(**stored["avatar"]),
        model=stored["model"],
        backend=stored["backend"],
        crop=Crop(stored["crop"]),
        timings=stored["timings"],
    )


def _time_from(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
