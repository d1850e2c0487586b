"""A 202 is a promise: what dies afterwards delays the avatar and loses nothing."""

import time

import pytest

from avatarforge.client import Client, ProfilePhotoJobStatus, ServerBusy
from avatarforge.domain.status import EventKind
from tests.acceptance.conftest import Installation


def stories(installation: Installation) -> dict[str, list[EventKind]]:
    """Every job's events, in order, from the database."""
    told: dict[str, list[EventKind]] = {}
    for change in installation.records.list_shard_events(0, 0, 100_000):
        told.setdefault(change.event.job_id, []).append(change.event.kind)
    return told


def await_processing(forge: Client, accepted: list[ProfilePhotoJobStatus]) -> None:
    """Return while one of the jobs is being worked on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(forge.get_status(job).status == "PROCESSING" for job in accepted):
            return
    raise AssertionError("none of the jobs was started in time")


def test_a_killed_tracker_loses_no_job_and_publishes_each_once(
    installation: Installation, forge: Client, portrait: bytes
) -> None:
    accepted = [forge.submit(f"crowd-{number % 4}", portrait, steps=2) for number in range(12)]
    await_processing(forge, accepted)
    [tracker] = installation.service.processes("ray::JobTrackerActor")
    tracker.kill()
    # Waiting ends with a job that is DONE, or raises.
    ends = [forge.wait(job, seconds=90) for job in accepted]
    told = stories(installation)
    for job in accepted:
        story = told[job.job_id]
        assert (story[0], story[-1]) == (EventKind.SUBMITTED, EventKind.DONE)
        assert story.count(EventKind.DONE) == 1
    assert max(end.attempt for end in ends) >= 2
    [again] = installation.service.processes("ray::JobTrackerActor")
    assert again.pid != tracker.pid


def test_a_killed_replica_loses_no_job(installation: Installation, forge: Client, portrait: bytes) -> None:
    accepted = [forge.submit("replica", portrait, steps=4) for _ in range(4)]
    await_processing(forge, accepted)
    [replica] = installation.service.processes("ray::ServeReplica:avatarforge:StableDiffusion")
    replica.kill()
    assert max(forge.wait(job, seconds=90).attempt for job in accepted) >= 2


def test_a_database_that_is_down_is_answered_503_and_nothing_is_left(
    installation: Installation, forge: Client, portrait: bytes
) -> None:
    before = [entry.key for entry in installation.storage.list("")]
    installation.mariadb.stop()
    try:
        with (
            Client(installation.service.url, timeout=90, retry_timeout=0) as impatient,
            pytest.raises(ServerBusy) as refused,
        ):
            impatient.submit("unlucky", portrait)
    finally:
        installation.mariadb.start()
    assert (refused.value.status, refused.value.code) == (503, "database_unavailable")
    assert refused.value.retry_after
    assert [entry.key for entry in installation.storage.list("")] == before
    forge.wait(forge.submit("lucky", portrait), seconds=90)
