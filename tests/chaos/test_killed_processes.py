"""Processes that are killed in the middle of a crowd's jobs."""

import pytest

from tests.chaos.conftest import JOBS, Rig, assert_recovered
from tests.chaos.crowd import RECOVERED, STARTED_AGAIN, Crowd, now, soon


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
    crowd = rig.crowd()
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
    crowd = rig.crowd()
    working(rig, crowd)
    rig.service.kill()
    started_at = now()
    rig.service.start()
    crowd.finish()
    assert_recovered(
        rig.outcome(crowd), "kill -9 everything", "work after the start", started_at, STARTED_AGAIN
    )
