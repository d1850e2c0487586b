"""A database that takes connections and answers nothing, as behind a broken disk or in a paused machine."""

import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.chaos.conftest import IS_LONG, JOBS, Rig, told
from tests.servers.pausing import hanging

HANG = 140.0 if IS_LONG else 17.0
"""Seconds: in a short run a bit more than the driver waits for an answer."""
PROMISED = 6.0 if IS_LONG else 12.0
"""Seconds within which everything is answered: twice as many where others use the machine, too."""


class Callers:
    """Clients of each call, who ask again and again, and how long their longest wait was."""

    def __init__(self, rig: Rig, job_id: str) -> None:
        job, customer = f"/customers/hung/photos/{job_id}", "/customers/hung"
        photo = {"photo": ("me.jpg", rig.photo, "image/jpeg")}
        calls: dict[str, Callable[[httpx.Client], httpx.Response]] = {
            "upload": lambda client: client.post(customer, files=photo),
            "upload with key": lambda client: client.post(
                customer, files=photo, headers={"Idempotency-Key": "the-same"}
            ),
            "status": lambda client: client.get(f"{job}/status"),
            "status of an unknown job": lambda client: client.get(f"{job[:-4]}0000/status"),
            "customers": lambda client: client.get("/customers"),
            "photos": lambda client: client.get(f"{customer}/photos"),
            "deliveries": lambda client: client.get(f"{job}/deliveries"),
            "image": lambda client: client.get(f"{job}/original", params={"redirect": "false"}),
            "cancel": lambda client: client.post(f"{job}/cancel"),
            "retry": lambda client: client.post(f"{job}/retry"),
            "erase": lambda client: client.delete(f"{customer}-2"),
            "ticket": lambda client: client.post(f"{customer}/tickets"),
            "stream": lambda client: _open_stream(client, f"{customer}/photos/stream?jobId={job_id}"),
            "readiness": lambda client: client.get("/readyz"),
            "scrape": lambda client: client.get("/metrics"),
        }
        self.longest = dict.fromkeys(calls, 0.0)
        self.statuses: dict[str, Counter[int]] = {name: Counter() for name in calls}
        self._url = rig.service.url
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(name, call), daemon=True) for name, call in calls.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when the calls under way are answered."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, call: Callable[[httpx.Client], httpx.Response]) -> None:
        with httpx.Client(base_url=self._url, timeout=90) as client:
            while not self._is_over.is_set():
                began = time.monotonic()
                self.statuses[name][call(client).status_code] += 1
                self.longest[name] = max(self.longest[name], time.monotonic() - began)
                self._is_over.wait(1)


def _open_stream(client: httpx.Client, path: str) -> httpx.Response:
    """Return the answer as soon as it begins."""
    with client.stream("GET", path, headers={"Last-Event-ID": "0"}) as response:
        return response


@pytest.mark.timeout(900)
def test_everything_is_answered_while_the_database_hangs_and_no_job_is_lost(rig: Rig) -> None:
    with rig.service.client() as client:
        accepted = client.post("/customers/hung", files={"photo": ("me.jpg", rig.photo, "image/jpeg")})
        job_id = accepted.json()["jobId"]
    crowd = rig.crowd(JOBS // 2, pause=0.2)
    crowd.start()
    crowd.await_accepted(JOBS // 6)
    callers = Callers(rig, job_id)
    with hanging(rig.mariadb.pid):
        callers.start()
        time.sleep(HANG)
    callers.stop()
    crowd.finish()
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()

    assert {name: seconds for name, seconds in callers.longest.items() if seconds > PROMISED} == {}
    assert set(callers.statuses["scrape"]) == {200}
    assert callers.statuses["readiness"][503] > 0
    assert {status for statuses in callers.statuses.values() for status in statuses} <= {
        *(200, 201, 202, 204, 404, 409, 503)
    }, callers.statuses
    told("database hangs", "longest wait for an answer", max(callers.longest.values()), "s")
