"""Load for a long time, faults at random times: `SOAK_MINUTES`, 0.5 by default and 30 in `make chaos`."""

import os
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psutil
import pytest

from tests.chaos.conftest import Rig, told
from tests.chaos.crowd import Crowd, now, soon

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.5"))
IS_LONG = MINUTES >= 10
SEED = int(os.environ.get("SOAK_SEED", "1"))
LOAD = 0.8
"""Share of what the service can do."""
THREADS = 4
ACTORS = {
    "tracker": "ray::JobTrackerActor",
    "ingress": "ray::ServeReplica:avatarforge:Ingress",
    "replica": "ray::ServeReplica:avatarforge:StableDiffusion",
    "controller": "ray::ServeController",
}
MOST_GROWTH = 0.05
"""Share by which an actor's memory may grow in the last, quiet quarter."""


def killed(title: str) -> Callable[[Rig], None]:
    def kill(rig: Rig) -> None:
        for process in rig.service.processes(title):
            process.kill()

    return kill


def database_restarted(rig: Rig) -> None:
    rig.mariadb.kill()
    rig.mariadb.start()


def commit_cut(rig: Rig) -> None:
    rig.database_proxy.cut_at(b"COMMIT")


def storage_refusing(rig: Rig) -> None:
    with rig.storage_proxy.refusing(3):
        time.sleep(3)


FAULTS: list[Callable[[Rig], None]] = [
    *(killed(title) for title in ACTORS.values()),
    database_restarted,
    commit_cut,
    storage_refusing,
]


def capacity(rig: Rig) -> float:
    """Jobs a second that the service finishes when it has enough of them."""
    crowd = rig.crowd(40)
    crowd.start()
    crowd.finish()
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    return outcome.jobs_per_second()


def disturb(rig: Rig, seconds: float, pause: float) -> int:
    """Faults at random times for so long; returns how many there were."""
    randomness = random.Random(SEED)
    ends, faults = time.monotonic() + seconds, 0
    while (wait := randomness.uniform(0.5, 1.5) * pause) < ends - time.monotonic():
        time.sleep(wait)
        randomness.choice(FAULTS)(rig)
        faults += 1
    return faults


def memory(rig: Rig) -> dict[str, float]:
    """Bytes of each actor that are its alone, once all are there again."""
    found = {}
    for name, title in ACTORS.items():
        soon(lambda title=title: bool(rig.service.processes(title)), 120, f"a {name} after the last fault")
        processes: list[psutil.Process] = rig.service.processes(title)
        found[name] = float(sum(process.memory_full_info().uss for process in processes))
    return found


@pytest.mark.timeout(60 * MINUTES + 900)
def test_load_with_faults_at_random_times_loses_nothing_and_keeps_its_memory(rig: Rig) -> None:
    rate = LOAD * capacity(rig)
    seconds = 60 * MINUTES
    crowd = Crowd(
        rig.service.url, rig.photo, int(rate * seconds), threads=THREADS, pause=THREADS / rate, customers=20
    )
    begun = now()
    crowd.start()
    faults = disturb(rig, seconds * 2 / 3, pause=60 if IS_LONG else 8)
    settled = begun + timedelta(seconds=seconds * 0.75)
    threading.Event().wait(max(0.0, (settled - now()).total_seconds()))
    before = memory(rig)
    crowd.finish(seconds + 300)
    after = memory(rig)
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    told("soak", f"jobs, all DONE once, {faults} faults", crowd.jobs, "")
    growth = {name: after[name] / bytes_before - 1 for name, bytes_before in before.items()}
    for name, share in growth.items():
        told("soak", f"growth of the {name}'s memory", 100 * share, "%")
    assert max(growth.values()) < MOST_GROWTH or not IS_LONG, growth
