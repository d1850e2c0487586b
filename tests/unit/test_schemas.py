"""The messages of the public interface, and the fields of an upload."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import Crop, GenerationParameters, ImageFormat, JobError
from avatarforge.ingress.news import LiveJob
from avatarforge.ingress.schemas import status_message
from avatarforge.ingress.submissions import Submission, read_submission
from avatarforge.messages import Parameters
from tests.factories import NOON, a_job, an_outcome

MANIFEST: Manifest = Catalogue().manifest("avatar-mini")
STEPS = MANIFEST.defaults.steps

FIELDS = [
    "jobId",
    "customerId",
    "status",
    "isTerminal",
    "progress",
    "etaSeconds",
    "queuePosition",
    "originalUrl",
    "generatedUrl",
    "callbackUrl",
    "error",
    "attempt",
    "retryOf",
    "backend",
    "model",
    "seed",
    "crop",
    "seq",
    "createdAt",
    "startedAt",
    "finishedAt",
    "timings",
    "parameters",
]


ASKED_FOR = {
    "prompt": "smiling",
    "negativePrompt": "",
    "style": "watercolor",
    "strength": 0.6,
    "steps": None,
    "guidance": None,
    "format": "png",
    "priority": 0,
    "allowRemote": True,
    "cutFace": True,
    "timeoutSeconds": None,
    "startTimeoutSeconds": None,
}


def test_a_waiting_job_is_told_with_every_field() -> None:
    job = replace(a_job(), seq=12, callback_url="https://example.org/hook", retry_of="r")

    told = json.loads(status_message(LiveJob(job=job, queue_position=3, eta_seconds=4.25)).json_bytes())

    assert told == {
        "jobId": job.job_id,
        "customerId": "ana",
        "status": "PENDING",
        "isTerminal": False,
        "progress": None,
        "etaSeconds": 4.2,
        "queuePosition": 3,
        "originalUrl": f"/customers/ana/photos/{job.job_id}/original",
        "generatedUrl": None,
        "callbackUrl": "https://example.org/hook",
        "error": None,
        "attempt": 0,
        "retryOf": "r",
        "backend": None,
        "model": None,
        "seed": 7,
        "crop": None,
        "seq": 12,
        "createdAt": "2026-05-17T12:00:00.123456Z",
        "startedAt": None,
        "finishedAt": None,
        "timings": dict.fromkeys(("queued", "fetch", "encode", "steps", "decode", "upload")),
        "parameters": ASKED_FOR,
    }


def test_a_finished_job_tells_how_its_avatar_came_about() -> None:
    job = a_job().started(NOON + timedelta(seconds=2)).done(an_outcome(), NOON + timedelta(seconds=5))

    told = json.loads(status_message(LiveJob(job=job)).json_bytes())

    assert list(told) == FIELDS
    assert told | {"jobId": "…", "originalUrl": "…"} == {
        "jobId": "…",
        "customerId": "ana",
        "status": "DONE",
        "isTerminal": True,
        "progress": None,
        "etaSeconds": None,
        "queuePosition": None,
        "originalUrl": "…",
        "generatedUrl": f"/customers/ana/photos/{job.job_id}/generated",
        "callbackUrl": None,
        "error": None,
        "attempt": 1,
        "retryOf": None,
        "backend": "local",
        "model": "avatar-mini",
        "seed": 7,
        "crop": Crop.FACE,
        "seq": 0,
        "createdAt": "2026-05-17T12:00:00.123456Z",
        "startedAt": "2026-05-17T12:00:02.123456Z",
        "finishedAt": "2026-05-17T12:00:05.123456Z",
        "timings": {
            "queued": 2.0,
            "fetch": 0.01,
            "encode": 0.02,
            "steps": 0.9,
            "decode": 0.03,
            "upload": 0.01,
        },
        "parameters": ASKED_FOR,
    }


def test_a_job_repeats_what_its_upload_asked_for() -> None:
    wanted: dict[str, Any] = {
        "prompt": "smiling",
        "negative_prompt": "hat",
        "style": "neon",
        "strength": 0.5,
        "steps": 20,
        "guidance": 7.0,
        "format": ImageFormat.WEBP,
        "allow_remote": False,
        "cut_face": False,
        "timeout_seconds": 90.0,
        "start_timeout_seconds": 30.0,
    }
    job = a_job(parameters=GenerationParameters(seed=7, **wanted), priority=3)

    told = json.loads(status_message(LiveJob(job=job)).json_bytes())

    assert told["parameters"] == {to_camel(name): value for name, value in wanted.items()} | {"priority": 3}
    assert set(wanted) | {"priority"} == set(Parameters.model_fields)


def test_a_running_job_tells_its_steps_once_it_has_any() -> None:
    job = a_job().started(NOON)

    running = status_message(LiveJob(job=job, progress=GenerationProgress(step=4, total_steps=20)))
    waiting_in_the_replica = status_message(LiveJob(job=job, progress=GenerationProgress()))

    assert running.model_dump()["progress"] == {"step": 4, "totalSteps": 20}
    assert waiting_in_the_replica.progress is None


def test_a_failed_job_tells_why() -> None:
    failed = a_job().started(NOON).failed(JobError(code="model_unusable", message="It is gone."), NOON)

    told = status_message(LiveJob(job=failed)).model_dump()

    assert told["error"] == {"code": "model_unusable", "message": "It is gone."}
    assert told["isTerminal"] is True


def test_times_are_told_in_utc_with_all_six_digits() -> None:
    in_rome = datetime(2026, 5, 17, 14, tzinfo=timezone(timedelta(hours=2)))

    told = json.loads(status_message(LiveJob(job=a_job(created_at=in_rome))).json_bytes())

    assert told["createdAt"] == "2026-05-17T12:00:00.000000Z"
    assert datetime.fromisoformat(told["createdAt"]) == datetime(2026, 5, 17, 12, tzinfo=UTC)


# --- the fields of an upload -----------------------------------------------------------------------------


def test_an_upload_without_fields_takes_every_default() -> None:
    assert read_submission({}, MANIFEST, new_seed=lambda: 42) == Submission(
        parameters=GenerationParameters(seed=42), priority=0, callback_url=None
    )


def test_all_fields_of_an_upload_are_read() -> None:
    fields = {
        "prompt": "a smiling pirate",
        "negativePrompt": "hat",
        "style": "neon",
        "strength": "0.65",
        "steps": "20",
        "guidance": "7.5",
        "seed": str(2**63 - 1),
        "format": "webp",
        "priority": "-10",
        "callbackUrl": "https://example.org:8443/hook?x=1",
        "allowRemote": "False",
        "cutFace": "false",
        "timeoutSeconds": "600",
        "startTimeoutSeconds": "1.5",
    }

    assert read_submission(fields, MANIFEST) == Submission(
        parameters=GenerationParameters(
            seed=2**63 - 1,
            prompt="a smiling pirate",
            negative_prompt="hat",
            style="neon",
            strength=0.65,
            steps=20,
            guidance=7.5,
            format=ImageFormat.WEBP,
            allow_remote=False,
            cut_face=False,
            timeout_seconds=600,
            start_timeout_seconds=1.5,
        ),
        priority=-10,
        callback_url="https://example.org:8443/hook?x=1",
    )


def test_an_empty_field_counts_as_absent() -> None:
    names = ("prompt", "style", "strength", "steps", "guidance", "seed", "format", "priority", "callbackUrl")

    assert read_submission(dict.fromkeys(names, ""), MANIFEST, new_seed=lambda: 1) == read_submission(
        {}, MANIFEST, new_seed=lambda: 1
    )


def test_what_the_model_has_not_is_refused_and_its_absence_is_no_fault() -> None:
    capabilities = {"strength": False, "guidance": False, "negative_prompt": False}
    manifest = Manifest.model_validate(MANIFEST.model_dump() | {"capabilities": capabilities})
    for name, value in (("strength", "0.5"), ("guidance", "3"), ("negativePrompt", "hat")):
        with pytest.raises(InvalidRequest, match=f"^{name} is .* left out"):
            read_submission({name: value}, manifest)
    assert read_submission({"steps": "1"}, manifest).parameters.steps == 1


def test_seeds_differ_when_none_is_asked_for() -> None:
    seeds = {read_submission({}, MANIFEST).parameters.seed for _ in range(20)}

    assert len(seeds) > 15
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("strength", "7", "a number above 0 and up to 1"),
        ("strength", "0", "a number above 0 and up to 1"),
        ("strength", "1e-400", "a number above 0 and up to 1"),
        ("strength", "nan", "a number above 0 and up to 1"),
        ("strength", "inf", "a number above 0 and up to 1"),
        ("strength", "strong", "a number above 0 and up to 1"),
        ("strength", "0.01", f"at least 1/{STEPS} with {STEPS} steps, or no step is left to take"),
        ("steps", "0", "a whole number from 1 to 150"),
        ("steps", "151", "a whole number from 1 to 150"),
        ("steps", "20.0", "a whole number from 1 to 150"),
        ("steps", "٢٠", "a whole number from 1 to 150"),
        ("steps", "1_0", "a whole number from 1 to 150"),
        ("steps", "9" * 5000, "a whole number from 1 to 150"),
        ("guidance", "-1", "a number from 0 to 30"),
        ("guidance", "30.5", "a number from 0 to 30"),
        ("guidance", "1e999", "a number from 0 to 30"),
        ("seed", str(2**70), f"a whole number from 0 to {2**63 - 1}"),
        ("seed", "-1", f"a whole number from 0 to {2**63 - 1}"),
        ("priority", "11", "a whole number from -10 to 10"),
        ("format", "bmp", "one of png, webp, jpeg"),
        ("allowRemote", "no", "true or false"),
        (
            "style",
            "cubism",
            "one of flat-illustration, pixel-art, pencil-sketch, watercolor, 3d-render, neon",
        ),
        ("prompt", "x" * 1001, "at most 1000 characters long (it has 1001)"),
        ("negativePrompt", "x" * 1001, "at most 1000 characters long (it has 1001)"),
        ("callbackUrl", "ftp://example.org/", "an absolute URL with http or https and a host"),
        ("callbackUrl", "/hook", "an absolute URL with http or https and a host"),
        ("callbackUrl", "https://", "an absolute URL with http or https and a host"),
        ("callbackUrl", "https://a b/", "an absolute URL with http or https and a host"),
        ("callbackUrl", "https://example.org:99999/", "a URL with a port from 1 to 65535"),
        ("callbackUrl", "https://ana:secret@example.org/", "a URL without a user name and password"),
        ("callbackUrl", "https://example.org/\r\nX: y", "an absolute URL with http or https and a host"),
        ("callbackUrl", "https://[::1/", "an absolute URL with http or https and a host"),
        ("callbackUrl", "https://example.org/" + "x" * 2000, "at most 2000 characters long (it has 2020)"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_right(
    field: str, value: str, expected: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_submission({field: value}, MANIFEST)

    assert (refusal.value.name, refusal.value.value, refusal.value.expected) == (field, value, expected)


def test_few_steps_with_little_strength_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1/2 with 2 steps"):
        read_submission({"steps": "2", "strength": "0.4"}, MANIFEST)


def test_one_step_at_full_strength_is_fine() -> None:
    parameters = read_submission({"steps": "1", "strength": "1"}, MANIFEST).parameters

    assert (parameters.steps, parameters.strength) == (1, 1.0)
