"""Jobs as rows and snapshots, and back."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.domain.jobs import GenerationParameters, ImageFormat, ProfilePhotoJob
from avatarforge.domain.status import TERMINAL_EVENTS, EventKind
from avatarforge.persistence.rows import (
    PhotoKind,
    attempt_from_row,
    attempt_row,
    delivery_from_row,
    delivery_row,
    event_from_row,
    event_row,
    job_from_row,
    job_from_snapshot,
    job_row,
    log_entry_from_row,
    photo_row,
    snapshot,
)
from tests.jobs import a_detailed_job, a_job, cancellation, failure, finish, later, requeue, start, submission

NEW = a_detailed_job()
RUNNING = start(NEW).job
EVERY_STATE = [
    a_job(),
    NEW,
    RUNNING,
    requeue(RUNNING).job,
    finish(RUNNING).job,
    failure(RUNNING).job,
    cancellation(NEW).job,
]


@pytest.mark.parametrize("job", EVERY_STATE, ids=lambda job: job.status)
def test_a_snapshot_is_json_and_holds_the_whole_job(job: ProfilePhotoJob) -> None:
    assert job_from_snapshot(json.loads(json.dumps(snapshot(job))), seq=12) == replace(job, seq=12)


@pytest.mark.parametrize("job", EVERY_STATE, ids=lambda job: job.status)
def test_rows_hold_the_whole_job(job: ProfilePhotoJob) -> None:
    row = job_row(job, seq=12)
    images = {PhotoKind.ORIGINAL: job.original}
    if job.outcome is not None:
        images[PhotoKind.AVATAR] = job.outcome.avatar
    for kind, image in images.items():
        row |= {f"{kind}_{name}": value for name, value in photo_row(job, kind, image).items()}

    assert job_from_row(row) == replace(job, seq=12)


def test_a_snapshot_of_an_earlier_release_lets_the_photo_leave_and_cuts_its_face() -> None:
    taken = snapshot(NEW)
    del taken["parameters"]["allow_remote"], taken["parameters"]["crop_to_face"]
    assert job_from_snapshot(taken, seq=12) == replace(NEW, seq=12)


def test_a_snapshot_names_every_field_of_a_job_but_its_number() -> None:
    names = {field.name for field in fields(ProfilePhotoJob)} - {"seq", "worker_losses"}

    assert set(snapshot(NEW)) == names | {"losses"}, "worker_losses is on record under the column's name"


parameters = st.builds(
    GenerationParameters,
    seed=st.integers(0, 2**63 - 1),
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    style=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    strength=st.none() | st.floats(0, 1),
    steps=st.none() | st.integers(1, 200),
    guidance=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    image_guidance=st.none() | st.floats(1, 5),
    sampler=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    width=st.none() | st.integers(64, 4096),
    height=st.none() | st.integers(64, 4096),
    format=st.sampled_from(ImageFormat),
    allow_remote=st.booleans(),
    crop_to_face=st.booleans(),
    timeout_seconds=st.none() | st.floats(1, 604_800),
    start_timeout_seconds=st.none() | st.floats(1, 604_800),
)


@given(parameters)
def test_any_parameters_survive_a_snapshot(wanted: GenerationParameters) -> None:
    job = replace(NEW, parameters=wanted)

    assert job_from_snapshot(json.loads(json.dumps(snapshot(job))), seq=0) == job


@pytest.mark.parametrize("change", [submission(NEW), start(NEW), requeue(RUNNING), finish(RUNNING)])
def test_an_event_comes_back_from_its_row(change) -> None:
    row = {**event_row(3, change, with_snapshot=True), "seq": 12}

    assert event_from_row(row) == change.with_seq(12).event
    assert log_entry_from_row(row).job == change.with_seq(12).job


@pytest.mark.parametrize("kind", list(EventKind))
def test_only_terminal_events_carry_the_job_that_they_end(kind: EventKind) -> None:
    change = replace(submission(NEW), event=replace(submission(NEW).event, kind=kind))

    row = event_row(0, change, with_snapshot=False)

    assert row["terminal_job_id"] == (NEW.job_id if kind in TERMINAL_EVENTS else None)
    assert row["snapshot"] is None


def test_the_terminal_events_are_those_of_the_terminal_states() -> None:
    assert {kind.value.upper() for kind in TERMINAL_EVENTS} == {
        job.status.value for job in EVERY_STATE if job.status.is_terminal
    }


@pytest.mark.parametrize(
    "delivery",
    [
        WebhookDelivery(
            delivery_id="msg_1_7",
            job_id="1",
            customer_id="ana",
            seq=7,
            url="https://example.org/hook",
            created_at=later(3),
            tries=2,
            next_at=later(63),
        ),
        WebhookDelivery(
            delivery_id="msg_2_8",
            job_id="2",
            customer_id="ben",
            seq=8,
            url="https://example.org/hook",
            created_at=later(4),
            state=DeliveryState.GIVEN_UP,
            tries=10,
        ),
    ],
    ids=lambda delivery: delivery.state,
)
def test_a_delivery_comes_back_from_its_row(delivery: WebhookDelivery) -> None:
    assert delivery_from_row(delivery_row(3, delivery)) == delivery


@pytest.mark.parametrize("status", [None, 503])
def test_an_attempt_comes_back_from_its_row(status: int | None) -> None:
    attempt = DeliveryAttempt(at=later(5), seconds=0.25, status=status, answer="not now")

    assert attempt_from_row(attempt_row("msg_1_7", 1, attempt)) == attempt
