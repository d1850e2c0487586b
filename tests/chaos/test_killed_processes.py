"""Processes that are killed in the middle of a crowd's jobs."""

from pathlib import Path

import pytest

from avatarforge.client import Client
from benchmarks.photos import noisy_jpeg
from tests.chaos.conftest import IS_LONG, JOBS, Rig, assert_recovered
from tests.chaos.crowd import RECOVERED, STARTED_AGAIN, Crowd, now, soon
from tests.servers.avatarforge import AvatarForgeServer

PAUSE_SECONDS = 0.4
"""The last uploads come after the fault, however fast the others are."""


def working(rig: Rig, crowd: Crowd) -> None:
    """Return in the middle of the work: most is uploaded, some is done, some is not."""
    crowd.start()
    crowd.await_accepted(JOBS // 2)
    outcome = rig.outcome(crowd)
    soon(lambda: outcome.done() >= JOBS // 8, 120, "an eighth of the jobs is done")


@pytest.mark.parametrize(
    "title",
    [
        "ray::JobTrackerActor",
        "ray::ServeReplica:avatarforge:StableDiffusion",
        "ray::ServeReplica:avatarforge:Ingress",
        "ray::ServeController",
    ],
)
@pytest.mark.timeout(900)
def test_a_killed_process_delays_jobs_and_loses_none(rig: Rig, title: str) -> None:
    crowd = rig.crowd(pause=PAUSE_SECONDS)
    working(rig, crowd)
    processes = rig.service.processes(title)
    assert processes, f"there is no {title}"
    killed_at = now()
    for process in processes:
        process.kill()
    crowd.finish()
    fault = f"kill -9 {title.removeprefix('ray::')}"
    assert_recovered(rig.outcome(crowd), fault, "work again after", killed_at, RECOVERED)
    soon(lambda: len(rig.service.processes(title)) >= len(processes), 60, f"a new {title}")


@pytest.mark.timeout(900)
def test_everything_killed_at_once_delays_jobs_and_loses_none(rig: Rig) -> None:
    crowd = rig.crowd(pause=PAUSE_SECONDS)
    working(rig, crowd)
    rig.service.kill()
    started_at = now()
    rig.service.start()
    crowd.finish()
    assert_recovered(
        rig.outcome(crowd), "kill -9 everything", "work after the start", started_at, STARTED_AGAIN
    )


@pytest.mark.skipif(not IS_LONG, reason="it starts the service twice more: `make chaos`")
def test_the_embedded_default_finishes_its_jobs_after_a_loss_of_power(tmp_path: Path) -> None:
    """SQLite and a folder."""
    service = AvatarForgeServer(tmp_path / "data")
    with service, Client(service.url, timeout=90) as forge:
        accepted = [forge.submit("survivor", noisy_jpeg(20_000, 256), steps=2) for _ in range(4)]
        service.kill()
        service.start()
        for job in accepted:
            forge.wait(job, seconds=90)
