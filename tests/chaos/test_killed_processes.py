"""Processes that are killed in the middle of a crowd's jobs."""

import pytest

from tests.chaos.conftest import IS_LONG, JOBS, Rig, told
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
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    seconds = outcome.seconds_until_work(killed_at)
    told(f"kill -9 {title.removeprefix('ray::')}", "work again after", seconds, "s")
    assert seconds <= RECOVERED or not IS_LONG
    soon(lambda: len(rig.service.processes(title)) >= len(processes), 60, f"a new {title}")


@pytest.mark.timeout(900)
def test_everything_killed_at_once_delays_jobs_and_loses_none(rig: Rig) -> None:
    crowd = rig.crowd()
    working(rig, crowd)
    rig.service.kill()
    started_at = now()
    rig.service.start()
    crowd.finish()
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    seconds = outcome.seconds_until_work(started_at)
    told("kill -9 everything", "work after the start", seconds, "s")
    assert seconds <= STARTED_AGAIN or not IS_LONG
