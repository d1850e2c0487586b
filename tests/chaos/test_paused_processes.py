"""Processes that stand still in the middle of a crowd's jobs, as on a machine that is moved or swaps.

Each is stopped by SIGSTOP for a minute and then goes on as if nothing had happened, with all that it held.
"""

import signal
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

from tests.chaos.conftest import IS_LONG, JOBS, Rig, assert_recovered
from tests.chaos.crowd import RECOVERED, now

PAUSE_SECONDS = 60.0


def find_of_ray(title: str) -> Callable[[Rig], Sequence[psutil.Process]]:
    return lambda rig: rig.service.processes(f"ray::{title}")


def find_by_name(name: str) -> Callable[[Rig], Sequence[psutil.Process]]:
    return lambda rig: [process for process in rig.service.all_processes() if process.name() == name]


PROCESSES: dict[str, Callable[[Rig], Sequence[psutil.Process]]] = {
    "tracker": find_of_ray("JobTrackerActor"),
    "only replica": find_of_ray("ServeReplica:avatarforge:StableDiffusion"),
    "ingress": find_of_ray("ServeReplica:avatarforge:Ingress"),
    "Serve's controller": find_of_ray("ServeController"),
    "Serve's proxy": find_of_ray("ProxyActor"),
    "HAProxy": find_by_name("haproxy"),
    "raylet": find_by_name("raylet"),
    "GCS": find_by_name("gcs_server"),
    "avatarforge up": lambda rig: rig.service.all_processes()[:1],
    "MariaDB": lambda rig: [psutil.Process(rig.mariadb.pid)],
}


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.skipif(not IS_LONG, reason="each stands still for a minute: `make chaos`")
@pytest.mark.timeout(900)
def test_a_process_that_stands_still_delays_jobs_and_loses_none(rig: Rig, name: str) -> None:
    # The last uploads come after the fault, however little it delays.
    crowd = rig.crowd(pause=4 * (PAUSE_SECONDS + 20) / JOBS)
    crowd.start()
    crowd.await_accepted(JOBS // 8)
    processes = PROCESSES[name](rig)
    assert processes, f"there is no {name}"
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(PAUSE_SECONDS)
    finally:
        for process in processes:
            # One that was taken for dead may have been killed and replaced meanwhile.
            if process.is_running():
                process.send_signal(signal.SIGCONT)
    over = now()
    crowd.finish()
    assert_recovered(rig.outcome(crowd), f"{name} stood still", "work after its end", over, RECOVERED)
    # 409: the first try of the same upload is still under way.
    assert set(crowd.refusals) <= {
        409,
        503,
        "ReadTimeout",
        "RemoteProtocolError",
        "ReadError",
        "ConnectError",
    }, crowd.refusals
