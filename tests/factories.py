"""Values for tests: whole and plausible, each field changeable by name."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from avatarforge.domain.identifiers import new_job_id
from avatarforge.domain.jobs import Crop, GenerationParameters, Outcome, ProfilePhotoJob, StoredImage

NOON = datetime(2026, 5, 17, 12, 0, 0, 123456, tzinfo=UTC)


def an_image(**changes: Any) -> StoredImage:
    image = StoredImage(
        key="customers/ana/1/original.jpg",
        media_type="image/jpeg",
        size=204_800,
        sha256="ab" * 32,
        width=1024,
        height=768,
    )
    return replace(image, **changes)


def a_job(**changes: Any) -> ProfilePhotoJob:
    job = ProfilePhotoJob(
        job_id=new_job_id(),
        customer_id="ana",
        parameters=GenerationParameters(seed=7, prompt="smiling", style="watercolor", strength=0.6),
        original=an_image(),
        created_at=NOON,
    )
    return replace(job, **changes)


def an_outcome(**changes: Any) -> Outcome:
    outcome = Outcome(
        avatar=an_image(key="customers/ana/1/avatar-1.png", media_type="image/png", width=128, height=128),
        model="avatar-mini",
        backend="local",
        crop=Crop.FACE,
        timings={"fetch": 0.01, "encode": 0.02, "steps": 0.9, "decode": 0.03, "upload": 0.01},
    )
    return replace(outcome, **changes)
