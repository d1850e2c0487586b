"""The messages of the public interface, and the fields of an upload."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import Crop, GenerationParameters, ImageFormat, JobError, Vary
from avatarforge.ingress.upload.form import FORM_NAMES, Submission, read_submission
from avatarforge.messages import LiveJob, Parameters, ProfilePhotoJobStatus
from tests.factories import NOON, a_job, a_manifest, a_variant, an_outcome

MANIFEST = a_manifest()
EDITING = a_manifest(family="instruct-pix2pix")
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
    "images",
    "kept",
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
    "imageGuidance": None,
    "sampler": None,
    "width": None,
    "height": None,
    "format": "png",
    "priority": 0,
    "allowRemote": True,
    "variants": 1,
    "vary": "seed",
    "cropToFace": True,
    "timeoutSeconds": None,
    "startTimeoutSeconds": None,
}


def test_a_waiting_job_is_told_with_every_field() -> None:
    job = replace(a_job(), seq=12, callback_url="https://example.org/hook", retry_of="r")

    told = json.loads(LiveJob(job=job, queue_position=3, eta_seconds=4.25).to_message().json_bytes())

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
        "images": [],
        "kept": None,
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


def test_a_message_of_a_server_without_several_images_is_understood() -> None:
    told = json.loads(LiveJob(job=a_job()).to_message().json_bytes())
    del told["images"], told["kept"]
    message = ProfilePhotoJobStatus.model_validate(told)
    assert (message.images, message.kept) == ((), None)
    promised = ProfilePhotoJobStatus.model_json_schema(mode="serialization")["required"]
    assert {"images", "kept"} <= set(promised)


def test_a_finished_job_tells_how_its_avatar_came_about() -> None:
    job = a_job().start(NOON + timedelta(seconds=2)).complete(an_outcome(), NOON + timedelta(seconds=5))

    told = json.loads(LiveJob(job=job).to_message().json_bytes())

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
        "images": [
            {
                "index": 0,
                "seed": 7,
                "style": "watercolor",
                "generatedUrl": f"/customers/ana/photos/{job.job_id}/generated/0",
            }
        ],
        "kept": None,
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
        "image_guidance": 1.5,
        "sampler": "Euler a",
        "width": 512,
        "height": 768,
        "format": ImageFormat.WEBP,
        "allow_remote": False,
        "variants": 4,
        "vary": Vary.STYLE,
        "crop_to_face": False,
        "timeout_seconds": 90.0,
        "start_timeout_seconds": 30.0,
    }
    job = a_job(parameters=GenerationParameters(seed=7, **wanted), priority=3)

    told = json.loads(LiveJob(job=job).to_message().json_bytes())

    assert told["parameters"] == {to_camel(name): value for name, value in wanted.items()} | {"priority": 3}
    assert set(wanted) | {"priority"} == {field.name for field in fields(Parameters)}


def test_a_job_of_several_images_tells_those_that_are_there_and_the_one_that_is_kept() -> None:
    job = a_job(parameters=GenerationParameters(seed=7, variants=3)).start(NOON)
    job = job.publish(a_variant(job, 2), 1).keep(2)

    told = json.loads(LiveJob(job=job).to_message().json_bytes())

    path = f"/customers/ana/photos/{job.job_id}/generated"
    image = {"index": 2, "seed": 9, "style": "watercolor", "generatedUrl": f"{path}/2"}
    assert (told["status"], told["generatedUrl"], told["images"], told["kept"]) == (
        "PROCESSING",
        None,
        [image],
        2,
    )


def test_a_running_job_tells_its_steps_once_it_has_any() -> None:
    job = a_job().start(NOON)

    running = LiveJob(job=job, progress=GenerationProgress(step=4, total_steps=20)).to_message()
    waiting_in_the_replica = LiveJob(job=job, progress=GenerationProgress()).to_message()

    assert running.model_dump()["progress"] == {"step": 4, "totalSteps": 20}
    assert waiting_in_the_replica.progress is None


def test_a_failed_job_tells_why() -> None:
    failed = a_job().start(NOON).fail(JobError(code="model_unusable", message="It is gone."), NOON)

    told = LiveJob(job=failed).to_message().model_dump()

    assert told["error"] == {"code": "model_unusable", "message": "It is gone."}
    assert told["isTerminal"] is True


def test_times_are_told_in_utc_with_all_six_digits() -> None:
    in_rome = datetime(2026, 5, 17, 14, tzinfo=timezone(timedelta(hours=2)))

    told = json.loads(LiveJob(job=a_job(created_at=in_rome)).to_message().json_bytes())

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
        "variants": "8",
        "vary": "style",
        "cropToFace": "false",
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
            variants=8,
            vary=Vary.STYLE,
            crop_to_face=False,
            timeout_seconds=600,
            start_timeout_seconds=1.5,
        ),
        priority=-10,
        callback_url="https://example.org:8443/hook?x=1",
    )


def test_an_empty_field_counts_as_absent() -> None:
    names = set(FORM_NAMES.values())

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


def test_a_model_that_edits_has_an_image_guidance_in_place_of_strength() -> None:
    parameters = read_submission({"imageGuidance": "2.5", "guidance": "7"}, EDITING).parameters
    assert (parameters.image_guidance, parameters.guidance, parameters.strength) == (2.5, 7, None)
    assert read_submission({}, EDITING).parameters.image_guidance is None


@pytest.mark.parametrize(
    ("manifest", "field", "value", "reason"),
    [
        (EDITING, "strength", "0.5", "the model editing has no strength, it has imageGuidance"),
        # Not that it must be up to 1.
        (EDITING, "strength", "7", "the model editing has no strength, it has imageGuidance"),
        (MANIFEST, "imageGuidance", "2", "the model plain has no image guidance, it has strength"),
    ],
)
def test_a_dial_that_the_model_lacks_is_refused_and_the_one_that_it_has_is_named(
    manifest: Manifest, field: str, value: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_submission({field: value, "guidance": "7"}, manifest)
    assert (refusal.value.name, refusal.value.value) == (field, value)
    assert refusal.value.expected == f"left out: {reason}"


@pytest.mark.parametrize("value", ["0", "0.99", "5.1", "nan", "much"])
def test_an_image_guidance_out_of_its_range_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="a number from 1 to 5"):
        read_submission({"imageGuidance": value, "guidance": "7"}, EDITING)


@pytest.mark.parametrize(("default", "guidance"), [(7.5, "1"), (7.5, "0"), (1, "")])
def test_an_image_guidance_that_would_have_no_effect_is_refused(default: float, guidance: str) -> None:
    manifest = a_manifest(family="instruct-pix2pix", defaults={"guidance": default})
    with pytest.raises(InvalidRequest, match=r"come with a guidance above 1: with [01] it has no effect"):
        read_submission({"imageGuidance": "2", "guidance": guidance}, manifest)


def test_a_single_step_of_a_model_that_edits_is_fine() -> None:
    assert read_submission({"steps": "1"}, EDITING).parameters.steps == 1


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
        ("variants", "0", "a whole number from 1 to 8"),
        ("variants", "9", "a whole number from 1 to 8"),
        ("vary", "prompt", "one of seed, style"),
        ("allowRemote", "no", "true or false"),
        ("style", "cubism", "one of watercolor, pixel-art, pencil-sketch, neon"),
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


@pytest.mark.parametrize(
    ("weighting", "value", "expected"),
    [
        ("automatic1111", "(a:11)", "without weights above 10 (one is 11)"),
        ("compel", '("a", "b").and()', "without .and(): weights alone are supported"),
        ("compel", "(a)0.5 b " * 17, "with at most 16 weights below 1 (it has 17)"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negativePrompt"])
def test_weights_that_cannot_be_used_are_refused_as_they_were_written(
    field: str, weighting: str, value: str, expected: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_submission({field: value, "style": "neon"}, a_manifest(prompt_weights=weighting))

    assert (refusal.value.name, refusal.value.value, refusal.value.expected) == (field, value, expected)
    # Where the manifest does not ask for weights, brackets are letters.
    read_submission({field: value, "style": "neon"}, MANIFEST)


def test_few_steps_with_little_strength_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1/2 with 2 steps"):
        read_submission({"steps": "2", "strength": "0.4"}, MANIFEST)


def test_one_step_at_full_strength_is_fine() -> None:
    parameters = read_submission({"steps": "1", "strength": "1"}, MANIFEST).parameters

    assert (parameters.steps, parameters.strength) == (1, 1.0)
