"""The keys that an ingress replica knows: found at once, forgotten soon, and kept through an outage."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from avatarforge.access.ring import KeyRing
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import DatabaseUnavailable, Unauthenticated
from tests.keys import an_api_key
from tests.waiting import wait_until


class RecordsTwin:
    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.looks = 0
        self.reads = 0
        self.away = False
        self.used: dict[str, datetime] = {}
        self.hold = threading.Event()
        """Cleared by a test: a look sees what was there before, and answers late."""
        self.hold.set()

    def fingerprint(self) -> tuple[int, int]:
        self.looks += 1
        if self.away:
            raise DatabaseUnavailable("switched off by the test")
        answer = len(self.keys), sum(key.revoked_at is not None for key in self.keys)
        self.hold.wait(10)
        return answer

    def all(self) -> list[ApiKey]:
        self.reads += 1
        return list(self.keys)

    def note_use(self, used: Mapping[str, datetime]) -> None:
        self.used.update(used)


class Times:
    """Both clocks, moved by the test."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds)


@pytest.fixture
def records() -> RecordsTwin:
    return RecordsTwin()


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def ring(records: RecordsTwin, times: Times) -> KeyRing:
    return KeyRing(records, times.now, times.clock)


async def test_a_key_that_is_new_counts_at_once(ring: KeyRing, records: RecordsTwin) -> None:
    await ring.refresh()
    key, text = an_api_key("ana")
    records.keys.append(key)

    assert await ring.find(text) == key
    assert await ring.of_id(key.key_id) == key


async def test_a_revoked_key_is_refused_after_the_next_look(
    ring: KeyRing, records: RecordsTwin, times: Times
) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)
    await ring.find(text)
    records.keys[0] = replace(key, revoked_at=times.now())
    times.seconds = KeyRing.LOOK_SECONDS
    await ring.refresh()

    with pytest.raises(Unauthenticated):
        await ring.find(text)
    with pytest.raises(Unauthenticated):
        await ring.of_id(key.key_id)


async def test_a_key_with_another_secret_is_refused(ring: KeyRing, records: RecordsTwin) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)

    with pytest.raises(Unauthenticated):
        await ring.find(text[:-4] + ("AAAA" if not text.endswith("AAAA") else "BBBB"))


async def test_an_expired_key_is_refused(ring: KeyRing, records: RecordsTwin, times: Times) -> None:
    key, text = an_api_key("ana", expires_in=timedelta(seconds=30))
    records.keys.append(key)
    await ring.find(text)
    times.seconds = 31

    with pytest.raises(Unauthenticated):
        await ring.find(text)


async def test_unknown_keys_however_many_cause_one_look(ring: KeyRing, records: RecordsTwin) -> None:
    strangers = [an_api_key("ana")[1] for _ in range(50)]
    answers = await asyncio.gather(*map(ring.find, strangers), return_exceptions=True)

    assert all(isinstance(answer, Unauthenticated) for answer in answers)
    assert (records.looks, records.reads) == (1, 1)


async def test_keys_are_read_again_only_when_some_were_added_or_revoked(
    ring: KeyRing, records: RecordsTwin, times: Times
) -> None:
    records.keys.append(an_api_key("ana")[0])
    for _ in range(3):
        await ring.refresh()
        times.seconds += KeyRing.LOOK_SECONDS
    assert (records.looks, records.reads) == (3, 1)


async def test_known_keys_outlast_an_outage_of_the_database_but_not_for_ever(
    ring: KeyRing, records: RecordsTwin, times: Times
) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)
    await ring.find(text)
    records.away = True
    times.seconds = KeyRing.STALE_SECONDS - 1
    assert await ring.find(text) == key

    times.seconds = KeyRing.STALE_SECONDS + 1
    with pytest.raises(DatabaseUnavailable):
        await ring.find(text)
    records.away = False
    times.seconds += 1
    assert await ring.find(text) == key


async def test_an_unknown_key_during_an_outage_is_not_called_wrong(
    ring: KeyRing, records: RecordsTwin
) -> None:
    records.away = True
    with pytest.raises(DatabaseUnavailable):
        await ring.find(an_api_key("ana")[1])


async def test_a_key_that_is_made_while_the_record_is_read_counts_too(
    ring: KeyRing, records: RecordsTwin
) -> None:
    records.hold.clear()
    early = asyncio.create_task(ring.find(an_api_key("ana")[1]))
    await wait_until(lambda: records.looks == 1)
    key, text = an_api_key("ana")
    late = asyncio.create_task(ring.find(text))
    await asyncio.sleep(0)
    records.keys.append(key)
    records.hold.set()

    assert await late == key
    with pytest.raises(Unauthenticated):
        await early


async def test_what_was_used_is_written_down_at_the_end(ring: KeyRing, records: RecordsTwin) -> None:
    used, text = an_api_key("ana")
    records.keys += [used, an_api_key("bob")[0]]
    ring.start()
    await ring.find(text)
    await ring.stop()

    assert list(records.used) == [used.key_id]
