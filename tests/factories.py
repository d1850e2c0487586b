"""Values for tests: whole and plausible, each field changeable by name."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from avatarforge.diffusion.models.catalogue import EDITING_FAMILY, Manifest
from avatarforge.domain.jobs import (
    AvatarImage,
    Crop,
    GenerationParameters,
    Outcome,
    ProfilePhotoJob,
    StoredImage,
    new_job_id,
)
from avatarforge.domain.replicas import ModelFailure, ReplicaReport, ReplicaState, ServedModel

NOON = datetime(2026, 5, 17, 12, 0, 0, 123456, tzinfo=UTC)


def a_manifest(**changes: Any) -> Manifest:
    """Of a model with `strength`; with `family="instruct-pix2pix"` of one with `imageGuidance`."""
    styles = ("watercolor", "pixel-art", "pencil-sketch", "neon")
    values: dict[str, Any] = {
        "name": "editing" if changes.get("family") == EDITING_FAMILY else "plain",
        "title": "Plain",
        "family": "stable-diffusion",
        "licence": "none",
        "source": {"folder": "checkpoint"},
        "size": 128,
        "defaults": {"steps": 25, "guidance": 3},
        "styles": {name: {"title": name.title(), "prompt": f"{name}, {{prompt}}"} for name in styles},
    }
    return Manifest.model_validate(values | changes)


def write_model(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Write the manifest into a new folder of models; return the settings that name it."""
    models = folder / "models"
    models.mkdir()
    (models / f"{manifest.name}.yaml").write_text(yaml.safe_dump(manifest.model_dump(mode="json")))
    return {"models_dir": str(models), "model": manifest.name}


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


def a_variant(job: ProfilePhotoJob, index: int, **changes: Any) -> AvatarImage:
    """An image of the job's attempt."""
    key = f"customers/{job.customer_id}/{job.job_id}/avatar-{job.attempt}-{index}.png"
    stored = an_image(key=key, media_type="image/png", width=128, height=128, **changes)
    return AvatarImage(index=index, seed=7 + index, style="watercolor", stored=stored)


def an_outcome(**changes: Any) -> Outcome:
    outcome = Outcome(
        avatar=an_image(key="customers/ana/1/avatar-1.png", media_type="image/png", width=128, height=128),
        model="avatar-mini",
        backend="local",
        crop=Crop.FACE,
        timings={"fetch": 0.01, "encode": 0.02, "steps": 0.9, "decode": 0.03, "upload": 0.01},
    )
    return replace(outcome, **changes)


def a_model(name: str = "first", minute: int = 0, **changes: Any) -> ServedModel:
    model = ServedModel(
        name=name,
        fingerprint="0123456789abcdef",
        since=NOON + timedelta(minutes=minute),
        load_phases={"read": 0.5, "measure": 1.0, "first_image": 0.5},
        dtype="float32",
        steps=20,
        strength=0.5,
        guidance=3.0,
        size=512,
    )
    return replace(model, **changes)


def a_report(replica_id: str = "a", **changes: Any) -> ReplicaReport:
    report = ReplicaReport(
        replica_id=replica_id,
        backend="local",
        reported_at=NOON,
        state=ReplicaState.SERVING,
        desired_model="first",
        model=a_model(),
        limit=4,
        step_seconds={1: 0.1, 2: 0.15, 4: 0.2},
    )
    return replace(report, **changes)


def empty(replica_id: str) -> ReplicaReport:
    failure = ModelFailure(model="broken", reason="It is broken.", at=NOON)
    return a_report(
        replica_id, state=ReplicaState.NO_MODEL, desired_model="broken", model=None, failure=failure
    )
