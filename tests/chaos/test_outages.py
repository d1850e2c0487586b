"""A database and a storage that fail in the middle of a crowd's jobs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import pytest

from tests.chaos.conftest import IS_LONG, JOBS, Rig, told
from tests.chaos.crowd import now

OUTAGE = 140.0 if IS_LONG else 5.0
"""Seconds that the database or the storage is away."""
PROMISED = 6.0
"""Seconds within which everything is answered, on a machine that does nothing else."""
SLOW = 3.0
"""Seconds that each answer of a slow storage takes."""
REFUSED_OF = 3
"""One call of so many is answered 503."""


@contextmanager
def stopped(rig: Rig) -> Iterator[None]:
    rig.mariadb.stop()
    try:
        yield
    finally:
        rig.mariadb.start()


@contextmanager
def killed(rig: Rig) -> Iterator[None]:
    rig.mariadb.kill()
    try:
        yield
    finally:
        rig.mariadb.start()


@contextmanager
def storage_away(rig: Rig) -> Iterator[None]:
    with rig.storage_proxy.down():
        yield


@contextmanager
def storage_slow(rig: Rig) -> Iterator[None]:
    with rig.storage_proxy.late(SLOW):
        yield


@contextmanager
def password_refused(rig: Rig) -> Iterator[None]:
    """Another password than the file's, and no connection that lives on the old one."""
    password = rig.credentials.password.read_text().strip()
    rig.mariadb.run("ALTER USER forge@'%' IDENTIFIED BY 'another'", "KILL USER forge")
    try:
        yield
    finally:
        rig.mariadb.run(f"ALTER USER forge@'%' IDENTIFIED BY '{password}'")


@contextmanager
def read_only(rig: Rig) -> Iterator[None]:
    """As a replica of MariaDB is, or a server before its fail-over."""
    rig.mariadb.run("SET GLOBAL read_only = ON")
    try:
        yield
    finally:
        rig.mariadb.run("SET GLOBAL read_only = OFF")


class Watch:
    """Asks for readiness and metrics, again and again, and keeps what was answered and how long it took."""

    def __init__(self, rig: Rig) -> None:
        self.named_after: float | None = None
        """Seconds until `/readyz` named the database."""
        self.longest = 0.0
        self.scrapes: Counter[int] = Counter()
        self._rig = rig
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._asking = self._pool.submit(self._ask)
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        self._asking.result()

    def _ask(self) -> None:
        began = time.monotonic()
        with self._rig.service.client() as client:
            while not self._is_over.is_set():
                asked = time.monotonic()
                ready = client.get("/readyz")
                between = time.monotonic()
                self.scrapes[client.get("/metrics").status_code] += 1
                self.longest = max(self.longest, between - asked, time.monotonic() - between)
                parts = ready.json()["parts"].items()
                down = [f"{name}: {part['detail']}" for name, part in parts if not part["ok"]]
                if self.named_after is None and "database" in " ".join(down):
                    self.named_after = between - began
                self._is_over.wait(0.5)


def lived_through(rig: Rig, fault: str, trouble: Callable[[Rig], AbstractContextManager[None]]) -> Watch:
    """A crowd's jobs, with the trouble in the middle; all have to be kept, and all that asks is answered."""
    crowd = rig.crowd(pause=0.2)
    crowd.start()
    crowd.await_accepted(JOBS // 3)
    with trouble(rig), Watch(rig) as watch:
        time.sleep(OUTAGE)
    over = now()
    crowd.finish()
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    told(fault, "uploads answered 503", crowd.refusals[503], "")
    told(fault, "work after its end", outcome.seconds_until_work(over), "s")
    told(fault, "longest wait of a probe or a scrape", watch.longest, "s")
    assert set(crowd.refusals) <= {503}, crowd.refusals
    assert set(watch.scrapes) == {200}
    assert watch.longest <= PROMISED or not IS_LONG
    return watch


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        ("database stopped", stopped),
        ("database killed", killed),
        ("storage away", storage_away),
        ("storage slow", storage_slow),
    ],
)
def test_an_outage_delays_jobs_and_loses_none(
    rig: Rig, fault: str, trouble: Callable[[Rig], AbstractContextManager[None]]
) -> None:
    lived_through(rig, fault, trouble)


@pytest.mark.skipif(not IS_LONG, reason="`make chaos`: tests/contract has the short form")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "trouble"), [("password refused", password_refused), ("database read-only", read_only)]
)
def test_a_database_that_somebody_changed_is_named_and_no_job_is_lost(
    rig: Rig, fault: str, trouble: Callable[[Rig], AbstractContextManager[None]]
) -> None:
    watch = lived_through(rig, fault, trouble)
    assert watch.named_after is not None
    told(fault, "until readiness names it", watch.named_after, "s")


@pytest.mark.timeout(900)
def test_credentials_are_rotated_in_the_middle_of_work(rig: Rig) -> None:
    """All connections are closed, so that none lives on the old password."""
    password, access_key = rig.credentials.password, rig.credentials.access_key
    rig.s3.keys.append(("rotated", "only-for-tests-too"))
    rig.s3.stop()
    rig.s3.start()
    crowd = rig.crowd(pause=0.2)
    crowd.start()
    crowd.await_accepted(JOBS // 3)

    password.write_text("second\nfirst\n")
    rig.mariadb.run("ALTER USER forge@'%' IDENTIFIED BY 'second'", "KILL USER forge")
    password.write_text("second\n")
    rig.mariadb.run("KILL USER forge")

    access_key.write_text("rotated\nonly-for-tests-too\n")
    crowd.await_accepted(2 * JOBS // 3)
    first = rig.s3.keys.pop(0)
    with rig.storage_proxy.down():
        rig.s3.stop()
        rig.s3.start()
    crowd.finish()
    outcome = rig.outcome(crowd)
    rig.s3.keys.append(first)
    rig.s3.stop()
    rig.s3.start()
    outcome.await_ends()
    outcome.assert_all_done()
    told("credentials rotated", "uploads answered 503", crowd.refusals[503], "")
    assert set(crowd.refusals) <= {503}, crowd.refusals
    with rig.service.client() as client:
        assert client.get("/readyz").status_code == 200


@pytest.mark.timeout(900)
def test_storage_that_refuses_every_third_call_delays_jobs_and_loses_none(rig: Rig) -> None:
    crowd = rig.crowd()
    with rig.storage_proxy.refusing(REFUSED_OF):
        crowd.start()
        crowd.finish()
        outcome = rig.outcome(crowd)
        outcome.await_ends()
    assert rig.storage_proxy.refused > JOBS // REFUSED_OF
    outcome.assert_all_done()
    told("storage refuses a third", "calls refused", rig.storage_proxy.refused, "")


@pytest.mark.timeout(900)
def test_commits_whose_answers_are_lost_keep_every_job_once(rig: Rig) -> None:
    crowd = rig.crowd(pause=0.2)
    crowd.start()
    cuts = 0
    while cuts < JOBS // 4:
        rig.database_proxy.cut_at(b"COMMIT")
        wanted = rig.database_proxy.cuts + 1
        ends = time.monotonic() + 60
        while rig.database_proxy.cuts < wanted:
            assert time.monotonic() < ends, f"no commit to cut after {cuts} cuts"
            time.sleep(0.01)
        cuts += 1
    crowd.finish()
    outcome = rig.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    told("commits cut", "cuts", cuts, "")
