"""The gRPC messages say what the REST interface says, field by field."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import JobError, ProfilePhotoJob, Vary
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.grpc import messages
from avatarforge.ingress.live.events import Changed, Erased, Progressed
from avatarforge.ingress.live.streams import Snapshot
from avatarforge.ingress.upload.form import FORM_NAMES, read_submission
from avatarforge.messages import LiveJob, ProfilePhotoJobStatus
from tests.factories import NOON, a_job, a_manifest, a_variant, an_outcome

MANIFEST = a_manifest()
EVERY_FIELD = a_manifest(capabilities={"strength": True, "image_guidance": True}, samplers=["Euler a"])


def numbered(seq: int, **changes: Any) -> ProfilePhotoJob:
    return replace(a_job(**changes), seq=seq)


def started(job: ProfilePhotoJob) -> ProfilePhotoJob:
    return job.start(NOON + timedelta(seconds=2))


def of_several() -> ProfilePhotoJob:
    job = started(numbered(16, parameters=replace(a_job().parameters, variants=3, vary=Vary.STYLE)))
    first, last = a_variant(job, 0), a_variant(job, 2)
    return job.publish(last, 1).publish(replace(first, seed=2**63 - 1, style=None), 1).keep(2)


LIVES = {
    "waiting": LiveJob(job=numbered(12, retry_of="r"), queue_position=3, eta_seconds=4.25),
    "running": LiveJob(
        job=started(numbered(13, callback_url="https://example.org/hook")),
        progress=GenerationProgress(step=3, total_steps=20),
        eta_seconds=0.0,
    ),
    "done": LiveJob(job=started(numbered(2**40)).complete(an_outcome(), NOON + timedelta(seconds=5))),
    "several": LiveJob(job=of_several()),
    "failed": LiveJob(
        job=started(numbered(15)).fail(
            JobError(code="device_failed", message="The device failed: out of memory"), NOON
        )
    ),
}


def as_rest_tells_it(message: pb.ProfilePhotoJobStatus) -> dict[str, Any]:
    """Protobuf's own JSON, but for its ways with enumerations and 64-bit numbers."""
    told: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    told["status"] = told["status"].removeprefix("PROCESSING_STATUS_")
    for image in told["images"]:
        image["seed"] = int(image["seed"])
    return told | {name: int(told[name]) for name in ("seed", "seq")}


def comparable(value: Any) -> Any:
    """Without nulls, which a message leaves away; times as times."""
    if isinstance(value, dict):
        return {
            name: datetime.fromisoformat(inner) if name.endswith("At") else comparable(inner)
            for name, inner in value.items()
            if inner is not None
        }
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("live", LIVES.values(), ids=LIVES)
def test_a_job_is_told_as_rest_tells_it(live: LiveJob) -> None:
    rest = json.loads(live.to_message().json_bytes())
    assert comparable(as_rest_tells_it(messages.job_status(live))) == comparable(rest)


def test_both_have_the_same_fields() -> None:
    fields = set(pb.ProfilePhotoJobStatus.DESCRIPTOR.fields_by_name)
    assert fields - {"reset", "preview"} == set(ProfilePhotoJobStatus.model_fields), (
        "REST has events of their own for them"
    )


def test_a_request_becomes_the_form_that_rest_reads() -> None:
    request = pb.SubmitPhotoRequest(
        callback_url="https://example.org/hook",
        prompt="smiling, 50 % {brighter}",
        negative_prompt="hat",
        style="neon",
        strength=0.1 + 0.2,
        steps=20,
        guidance=7,
        image_guidance=1.5,
        sampler="Euler a",
        width=64,
        height=128,
        seed=2**63 - 1,
        format="webp",
        priority=-3,
        allow_remote=False,
        crop_to_face=False,
        timeout_seconds=90.5,
        start_timeout_seconds=30,
        variants=8,
        vary="style",
    )
    fields = messages.form_fields(request)
    assert set(fields) == set(FORM_NAMES.values())
    submission = read_submission(fields, EVERY_FIELD)
    parameters = submission.parameters
    assert (submission.callback_url, submission.priority) == ("https://example.org/hook", -3)
    assert (parameters.allow_remote, parameters.crop_to_face) == (False, False)
    assert (parameters.variants, parameters.vary) == (8, Vary.STYLE)
    assert (parameters.timeout_seconds, parameters.start_timeout_seconds) == (90.5, 30)
    assert (parameters.prompt, parameters.negative_prompt) == ("smiling, 50 % {brighter}", "hat")
    assert (parameters.strength, parameters.guidance, parameters.steps) == (0.1 + 0.2, 7, 20)
    assert (parameters.image_guidance, parameters.sampler) == (1.5, "Euler a")
    assert (parameters.width, parameters.height) == (64, 128)
    assert (parameters.seed, parameters.style, parameters.format) == (2**63 - 1, "neon", "webp")


def test_a_field_that_is_not_set_takes_its_default_and_zero_does_not_count_as_unset() -> None:
    assert messages.form_fields(pb.SubmitPhotoRequest(customer_id="ana", photo=b"x")) == {}
    assert messages.form_fields(pb.SubmitPhotoRequest(seed=0, guidance=0)) == {"seed": "0", "guidance": "0.0"}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("strength", float("nan"), "strength is 'nan', but it must be a number above 0 and up to 1."),
        ("guidance", float("-inf"), "guidance is '-inf', but it must be a number from 0 to 30."),
        ("strength", 1e-05, "strength is '1e-05', but it must be at least 1/"),
        ("steps", 2**31 - 1, "steps is '2147483647', but it must be a whole number from 1 to 150."),
        ("seed", -1, "seed is '-1', but it must be a whole number from 0 to 9223372036854775807."),
        ("priority", 11, "priority is '11', but it must be a whole number from -10 to 10."),
        ("format", "bmp", "format is 'bmp', but it must be one of png, webp, jpeg."),
    ],
)
def test_a_value_out_of_bounds_is_named_with_what_would_be_right(field: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_submission(messages.form_fields(pb.SubmitPhotoRequest(**{field: value})), MANIFEST)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize("seconds", [-1, 61, -(2**31)])
def test_a_wait_out_of_bounds_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match=f"wait_seconds is {seconds}, but .* from 0 to 60"):
        messages.parse_wait_seconds(pb.JobStatusRequest(wait_seconds=seconds), 60)


def test_a_stream_tells_each_thing_in_its_message() -> None:
    job, other = numbered(7), numbered(9)
    running = LiveJob(job=started(job), progress=GenerationProgress(step=1, total_steps=4))
    told = [
        list(messages.stream_messages("ana", item))
        for item in (
            Snapshot(seq=9, jobs=(LiveJob(job=other), LiveJob(job=job))),
            Snapshot(seq=9, jobs=()),
            Snapshot(seq=9, jobs=(LiveJob(job=job),), reset=True),
            Changed(seq=7, live=LiveJob(job=job)),
            Progressed(live=running, preview=b"picture"),
            Erased(seq=11, customer_id="ana", job_id=job.job_id),
        )
    ]
    assert told == [
        [messages.job_status(LiveJob(job=job)), messages.job_status(LiveJob(job=other))],
        [pb.ProfilePhotoJobStatus(customer_id="ana", seq=9)],
        [
            pb.ProfilePhotoJobStatus(customer_id="ana", reset=True),
            messages.job_status(LiveJob(job=job)),
            pb.ProfilePhotoJobStatus(customer_id="ana", seq=9),
        ],
        [messages.job_status(LiveJob(job=job))],
        [messages.job_status(running)],
        [pb.ProfilePhotoJobStatus(customer_id="ana", job_id=job.job_id, seq=11)],
    ]
    assert told[5][0].status == pb.PROCESSING_STATUS_UNSPECIFIED


def test_a_live_step_has_its_preview_where_previews_are_asked_for() -> None:
    step = Progressed(live=LiveJob(job=started(numbered(7))), preview=b"picture", index=3)
    bare = Progressed(live=step.live, preview=None)

    def told(item: Progressed, *, previews: bool) -> pb.ProfilePhotoJobStatus:
        [message] = messages.stream_messages("ana", item, previews=previews)
        return message

    assert told(step, previews=True).preview == pb.Preview(index=3, picture=b"picture")
    for message in (told(step, previews=False), told(bare, previews=True)):
        assert message == messages.job_status(step.live)


def test_all_who_follow_a_customer_share_a_changes_message() -> None:
    change = Changed(seq=7, live=LiveJob(job=numbered(7)))
    [first], [second] = (messages.stream_messages("ana", change) for _ in range(2))
    assert first is second
