"""A machine that dies in the middle of a transaction: its connection stays open, and nobody is there."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

import pytest

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings
from tests.chaos.conftest import IS_LONG, told
from tests.jobs import a_job, submission
from tests.servers.mariadb import MariaDbServer
from tests.servers.tcp_proxy import TcpProxy

SETTINGS = DatabaseSettings() if IS_LONG else DatabaseSettings(read_timeout=5)
TAKEN_OVER_SECONDS = SETTINGS.read_timeout
CASES = [
    (b"INSERT INTO job_events", 0, False),
    (b"INSERT INTO job_events", 0.5, False),
    (b"INSERT INTO job_events", 1, False),
    (b"COMMIT", 0, False),
    (b"COMMIT", 1, True),
]
"""At which words the machine dies, the share of them that the server hears, and whether the job is kept."""


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDbServer]:
    with MariaDbServer(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@dataclass(frozen=True)
class TakeOver:
    """What came of a shard whose tracker fell silent in a transaction."""

    predecessor: int
    """Its epoch."""
    successor: int
    seconds: float
    is_kept: bool
    """Whether the transaction was committed."""


def take_over(port: int, url: str, words: bytes, heard: float) -> TakeOver:
    """Let a predecessor fall silent at these words, of which the server hears a share, and start another."""
    successor = JobRepository(open_engine(SETTINGS, url))
    with TcpProxy(port) as proxy, ThreadPoolExecutor(1) as threads:
        far = url.replace(str(port), str(proxy.port))
        predecessor = JobRepository(open_engine(SETTINGS, far))
        epoch = predecessor.claim_shard(0)
        change = submission(a_job())
        proxy.fall_silent_at(words, heard)
        lost = threads.submit(predecessor.commit, 0, epoch, [change])
        assert proxy.silenced.wait(10)
        began = time.monotonic()
        while True:
            try:
                taken = successor.claim_shard(0)
                break
            except DatabaseUnavailable:
                assert time.monotonic() < began + 60, "the shard is locked for a minute"
        seconds = time.monotonic() - began
        assert isinstance(lost.exception(60), DatabaseUnavailable)
    return TakeOver(epoch, taken, seconds, successor.read_back([change]) is not None)


@pytest.fixture(scope="module")
def take_overs(mariadb: MariaDbServer) -> dict[tuple[bytes, float], TakeOver]:
    """By words and share. All at the same time, since each is little but waiting."""
    wanted: dict[tuple[bytes, float], str] = {}
    for words, heard, _ in CASES:
        url = wanted[words, heard] = mariadb.create_database(f"half_open_{uuid4().hex}")
        upgrade(url)
    with ThreadPoolExecutor(len(CASES)) as threads:
        ends = {case: threads.submit(take_over, mariadb.port, url, *case) for case, url in wanted.items()}
    return {case: end.result() for case, end in ends.items()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("words", "heard", "is_kept"), CASES)
def test_a_half_open_connection_does_not_lock_a_shard(
    take_overs: dict[tuple[bytes, float], TakeOver], words: bytes, heard: float, is_kept: bool
) -> None:
    end = take_overs[words, heard]
    told("half-open connection", f"taken over ({words.decode()}, {heard:g} heard)", end.seconds, "s")
    assert end.successor == end.predecessor + 1
    assert end.seconds <= TAKEN_OVER_SECONDS
    assert end.is_kept == is_kept
