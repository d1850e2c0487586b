"""Jobs and their changes to fill a record with."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from avatarforge.domain.changes import Fence, IdempotencyKey, JobChange
from avatarforge.domain.jobs import (
    GenerationParameters,
    ImageFormat,
    JobError,
    Outcome,
    ProfilePhotoJob,
    new_job_id,
)
from avatarforge.domain.status import EventKind
from tests import factories
from tests.factories import NOON

FENCE = Fence(0, 1)
"""The right of the first tracker of shard 0."""


def a_job(customer_id: str = "ana", **fields: Any) -> ProfilePhotoJob:
    """A fresh PENDING job."""
    return factories.a_job(customer_id=customer_id, **fields)


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


def a_followed_job(customer_id: str = "ana", **fields: Any) -> ProfilePhotoJob:
    """A PENDING job whose end somebody wants to be told of."""
    return a_job(customer_id, callback_url="https://example.org/hook", **fields)


def a_key(key: str = "upload-1") -> IdempotencyKey:
    return IdempotencyKey(key=key, fingerprint="f0" * 32)


def an_outcome(job: ProfilePhotoJob) -> Outcome:
    """One whose avatar has more bytes than 32 bits can count."""
    key = f"customers/{job.customer_id}/{job.job_id}/avatar-{job.attempt}.webp"
    avatar = factories.an_image(key=key, media_type="image/webp", size=5_000_000_000, width=512, height=512)
    return factories.an_outcome(avatar=avatar)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


# --- changes ------------------------------------------------------------------------------------------


def submission(job: ProfilePhotoJob, key: IdempotencyKey | None = None) -> JobChange:
    return JobChange(job=job, event=job.event(EventKind.SUBMITTED, job.created_at), idempotency_key=key)


def start(job: ProfilePhotoJob) -> JobChange:
    started = job.start(later(1))
    return JobChange(job=started, event=started.event(EventKind.STARTED, later(1)))


def requeue(job: ProfilePhotoJob) -> JobChange:
    waiting = job.requeue(lost=True)
    return JobChange(job=waiting, event=waiting.event(EventKind.REQUEUED, later(2)))


def image(job: ProfilePhotoJob, index: int) -> JobChange:
    published = job.publish(factories.a_variant(job, index, size=5_000_000_000), job.attempt)
    return JobChange(job=published, event=published.event(EventKind.IMAGE, later(2)))


def keeping(job: ProfilePhotoJob, index: int) -> JobChange:
    kept = job.keep(index)
    return JobChange(job=kept, event=kept.event(EventKind.KEPT, later(5)))


def finish(job: ProfilePhotoJob) -> JobChange:
    done = job.complete(an_outcome(job), later(3))
    return JobChange(job=done, event=done.event(EventKind.DONE, later(3)))


def failure(job: ProfilePhotoJob) -> JobChange:
    failed = job.fail(JobError(code="model_unusable", message="It made no picture: ✗"), later(3))
    return JobChange(job=failed, event=failed.event(EventKind.FAILED, later(3)))


def cancellation(job: ProfilePhotoJob) -> JobChange:
    cancelled = job.cancel(later(3))
    return JobChange(job=cancelled, event=cancelled.event(EventKind.CANCELLED, later(3)))


def erasure(job: ProfilePhotoJob) -> JobChange:
    erased = job.erase()
    return JobChange(job=erased, event=erased.event(EventKind.ERASED, later(9)))


def numbered(changes: Sequence[JobChange], seqs: Sequence[int]) -> list[ProfilePhotoJob]:
    """The jobs as the record gives them back."""
    return [change.with_seq(seq).job for change, seq in zip(changes, seqs, strict=True)]
