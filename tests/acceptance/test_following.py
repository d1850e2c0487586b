"""A stream is followed to the end, whatever dies on the way."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from avatarforge.client import Client, JobChanged, JobProgressed
from tests.acceptance.conftest import Installation, submitted
from tests.events import Event, EventReader


@contextmanager
def stream(client: httpx.Client, customer_id: str, last_event_id: int) -> Iterator[Iterator[Event]]:
    path, headers = f"/customers/{customer_id}/photos/stream", {"Last-Event-ID": str(last_event_id)}
    with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()
        reader = EventReader()
        events = (reader.read(line) for line in response.iter_lines())
        yield (event for event in events if event is not None and event.kind != "comment")


def test_a_client_that_is_cut_misses_nothing_over_the_death_of_the_tracker(
    installation: Installation, client: httpx.Client, portrait: bytes
) -> None:
    accepted = submitted(client, "follower", portrait, steps="8").json()
    heard: list[Event] = []
    with stream(client, "follower", accepted["seq"] - 1) as events:
        for event in events:
            heard.append(event)
            if event.kind == "progress":
                [tracker] = installation.service.processes("ray::JobTrackerActor")
                tracker.kill()
                break
    # The client is cut, too; and once more after each change.
    while heard[-1].data["status"] != "DONE":
        with stream(client, "follower", max(event.id or 0 for event in heard)) as events:
            heard.append(next(event for event in events if event.kind == "status"))

    log = installation.records.list_customer_events("follower", accepted["jobId"], 0, 100)
    assert [event.id for event in heard if event.kind == "status"] == [entry.event.seq for entry in log]
    kinds = [entry.event.kind.value for entry in log]
    assert kinds == ["submitted", "started", "requeued", "started", "done"]
    assert heard[-1].data == client.get(f"/customers/follower/photos/{accepted['jobId']}/status").json()


def test_a_watching_client_goes_on_by_itself_over_the_death_of_tracker_and_ingress(
    installation: Installation, forge: Client, portrait: bytes
) -> None:
    accepted = forge.submit("watcher", portrait, steps=8)
    heard: list[JobChanged] = []
    victims = ["ray::JobTrackerActor", "ray::ServeReplica:avatarforge:Ingress"]
    for event in forge.watch(accepted, after=accepted.seq - 1):
        if isinstance(event, JobChanged):
            heard.append(event)
        elif isinstance(event, JobProgressed) and victims:
            [victim] = installation.service.processes(victims.pop())
            victim.kill()
    log = installation.records.list_customer_events("watcher", accepted.job_id, 0, 100)
    assert [event.seq for event in heard] == [entry.event.seq for entry in log]
    assert heard[-1].job == forge.get_status(accepted)
    assert heard[-1].job.status == "DONE"
