"""Jobs to test with: factories with every field filled or with none."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from avatarforge.domain.changes import JobChange
from avatarforge.domain.events import EventKind
from avatarforge.domain.identifiers import new_job_id
from avatarforge.domain.jobs import (
    Crop,
    GenerationParameters,
    ImageFormat,
    JobError,
    Outcome,
    ProfilePhotoJob,
    StoredImage,
)

NOON = datetime(2026, 3, 29, 12, 0, 0, 123456, tzinfo=UTC)


def a_job(customer_id: str = "ana", **fields: Any) -> ProfilePhotoJob:
    """A fresh PENDING job."""
    job_id = fields.pop("job_id", None) or new_job_id()
    original = StoredImage(
        key=f"customers/{customer_id}/{job_id}/original.jpg",
        media_type="image/jpeg",
        size=204_800,
        sha256="0" * 64,
        width=640,
        height=480,
    )
    defaults: dict[str, Any] = {
        "job_id": job_id,
        "customer_id": customer_id,
        "parameters": GenerationParameters(seed=7),
        "original": original,
        "created_at": NOON,
    }
    return ProfilePhotoJob(**{**defaults, **fields})


def a_detailed_job(customer_id: str = "ana") -> ProfilePhotoJob:
    """A PENDING job with every field that a submission can fill set to something telling."""
    return a_job(
        customer_id,
        parameters=GenerationParameters(
            seed=2**63 - 1,
            prompt="a 'quoted' “prompt” with %s, :name, \\ and 🦊\n\tnew line",
            negative_prompt="blurry; DROP TABLE customers",
            style="pixel art",
            strength=0.65,
            steps=24,
            guidance=7.5,
            format=ImageFormat.WEBP,
        ),
        priority=-3,
        callback_url="https://example.org/hook?" + "q" * 3000,
        retry_of=new_job_id(),
    )


def an_outcome(job: ProfilePhotoJob) -> Outcome:
    avatar = StoredImage(
        key=f"customers/{job.customer_id}/{job.job_id}/avatar-{job.attempt}.webp",
        media_type="image/webp",
        size=3_000_000_000,
        sha256="f" * 64,
        width=512,
        height=512,
    )
    return Outcome(
        avatar=avatar,
        model="avatar-mini",
        backend="cpu",
        crop=Crop.FACE,
        timings={"fetch": 0.25, "encode": 0.1, "steps": 1.5, "decode": 0.125, "upload": 1e-6},
    )


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


# --- changes ------------------------------------------------------------------------------------------


def submission(job: ProfilePhotoJob) -> JobChange:
    return JobChange(job=job, event=job.event(EventKind.SUBMITTED, job.created_at))


def start(job: ProfilePhotoJob) -> JobChange:
    started = job.started(later(1))
    return JobChange(job=started, event=started.event(EventKind.STARTED, later(1)))


def requeue(job: ProfilePhotoJob) -> JobChange:
    waiting = job.requeued(lost=True)
    return JobChange(job=waiting, event=waiting.event(EventKind.REQUEUED, later(2)))


def finish(job: ProfilePhotoJob) -> JobChange:
    done = job.done(an_outcome(job), later(3))
    return JobChange(job=done, event=done.event(EventKind.DONE, later(3)))


def failure(job: ProfilePhotoJob) -> JobChange:
    failed = job.failed(JobError(code="model_unusable", message="It made no picture: ✗"), later(3))
    return JobChange(job=failed, event=failed.event(EventKind.FAILED, later(3)))


def cancellation(job: ProfilePhotoJob) -> JobChange:
    cancelled = job.cancelled(later(3))
    return JobChange(job=cancelled, event=cancelled.event(EventKind.CANCELLED, later(3)))


def erasure(job: ProfilePhotoJob) -> JobChange:
    erased = replace(job, revision=job.revision + 1)
    return JobChange(job=erased, event=erased.event(EventKind.ERASED, later(9)))


def numbered(changes: Sequence[JobChange], seqs: Sequence[int]) -> list[ProfilePhotoJob]:
    """The jobs as the record gives them back."""
    return [change.numbered(seq).job for change, seq in zip(changes, seqs, strict=True)]
