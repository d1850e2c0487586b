"""A 202 is a promise: what dies afterwards delays the avatar and loses nothing."""

import time
from pathlib import Path

import httpx

from avatarforge.domain.events import EventKind
from tests.acceptance.conftest import Installation
from tests.acceptance.test_upload import ended, submitted
from tests.servers.avatarforge import AvatarForgeServer


def stories(installation: Installation) -> dict[str, list[EventKind]]:
    """Every job's events, in order, from the database."""
    told: dict[str, list[EventKind]] = {}
    for change in installation.records.events_after(0, 0, 100_000):
        told.setdefault(change.event.job_id, []).append(change.event.kind)
    return told


def await_processing(client: httpx.Client, accepted: list[httpx.Response]) -> None:
    """Return while one of the jobs is being worked on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for answer in accepted:
            if client.get(answer.headers["location"]).json()["status"] == "PROCESSING":
                return
    raise AssertionError("none of the jobs was started in time")


def test_a_killed_tracker_loses_no_job_and_publishes_each_once(
    installation: Installation, client: httpx.Client, portrait: bytes
) -> None:
    accepted = [submitted(client, f"crowd-{number % 4}", portrait, steps="8") for number in range(20)]
    await_processing(client, accepted)
    [tracker] = installation.service.processes("ray::JobTrackerActor")
    tracker.kill()
    ends = [ended(client, answer) for answer in accepted]
    assert [end["status"] for end in ends] == ["DONE"] * 20
    told = stories(installation)
    for answer in accepted:
        story = told[answer.json()["jobId"]]
        assert (story[0], story[-1]) == (EventKind.SUBMITTED, EventKind.DONE)
        assert story.count(EventKind.DONE) == 1
    assert max(int(str(end["attempt"])) for end in ends) >= 2
    [again] = installation.service.processes("ray::JobTrackerActor")
    assert again.pid != tracker.pid


def test_a_killed_replica_loses_no_job(
    installation: Installation, client: httpx.Client, portrait: bytes
) -> None:
    accepted = [submitted(client, "replica", portrait, steps="20") for _ in range(4)]
    await_processing(client, accepted)
    [replica] = installation.service.processes("ray::ServeReplica:avatarforge:StableDiffusion")
    replica.kill()
    ends = [ended(client, answer) for answer in accepted]
    assert [end["status"] for end in ends] == ["DONE"] * 4
    assert max(int(str(end["attempt"])) for end in ends) >= 2


def test_a_database_that_is_down_is_answered_503_and_nothing_is_left(
    installation: Installation, client: httpx.Client, portrait: bytes
) -> None:
    before = [entry.key for entry in installation.storage.list("")]
    installation.mariadb.stop()
    try:
        refused = submitted(client, "unlucky", portrait)
    finally:
        installation.mariadb.start()
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert [entry.key for entry in installation.storage.list("")] == before
    deadline = time.monotonic() + 30
    while (again := submitted(client, "lucky", portrait, steps="4")).status_code == 503:
        assert time.monotonic() < deadline, again.text
        time.sleep(0.2)
    assert ended(client, again)["status"] == "DONE"


def test_a_machine_that_loses_power_finishes_its_jobs_after_the_next_start(
    tmp_path: Path, portrait: bytes
) -> None:
    """The embedded default: SQLite and a folder."""
    service = AvatarForgeServer(tmp_path / "data")
    with service, service.client() as client:
        accepted = [submitted(client, "survivor", portrait, steps="8") for _ in range(4)]
        service.kill()
        service.start()
        assert [ended(client, answer)["status"] for answer in accepted] == ["DONE"] * 4
