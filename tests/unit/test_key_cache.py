"""The keys that an ingress replica knows: found at once, forgotten soon, and kept through an outage."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from avatarforge.access.key_cache import KeyCache
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

    def get_fingerprint(self) -> tuple[int, int]:
        self.looks += 1
        if self.away:
            raise DatabaseUnavailable("switched off by the test")
        answer = len(self.keys), sum(key.revoked_at is not None for key in self.keys)
        self.hold.wait(10)
        return answer

    def list_all(self) -> list[ApiKey]:
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
def cache(records: RecordsTwin, times: Times) -> KeyCache:
    return KeyCache(records, times.now, times.clock)


async def test_a_key_that_is_new_counts_at_once(cache: KeyCache, records: RecordsTwin) -> None:
    await cache.refresh()
    key, text = an_api_key("ana")
    records.keys.append(key)

    assert await cache.find(text) == key
    assert await cache.get(key.key_id) == key


async def test_a_revoked_key_is_refused_after_the_next_look(
    cache: KeyCache, records: RecordsTwin, times: Times
) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)
    await cache.find(text)
    records.keys[0] = replace(key, revoked_at=times.now())
    times.seconds = KeyCache.REFRESH_INTERVAL_SECONDS
    await cache.refresh()

    with pytest.raises(Unauthenticated):
        await cache.find(text)
    with pytest.raises(Unauthenticated):
        await cache.get(key.key_id)


async def test_a_key_with_another_secret_is_refused(cache: KeyCache, records: RecordsTwin) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)

    with pytest.raises(Unauthenticated):
        await cache.find(text[:-4] + ("AAAA" if not text.endswith("AAAA") else "BBBB"))


async def test_an_expired_key_is_refused(cache: KeyCache, records: RecordsTwin, times: Times) -> None:
    key, text = an_api_key("ana", expires_in=timedelta(seconds=30))
    records.keys.append(key)
    await cache.find(text)
    times.seconds = 31

    with pytest.raises(Unauthenticated):
        await cache.find(text)


async def test_unknown_keys_however_many_cause_one_look(cache: KeyCache, records: RecordsTwin) -> None:
    strangers = [an_api_key("ana")[1] for _ in range(50)]
    answers = await asyncio.gather(*map(cache.find, strangers), return_exceptions=True)

    assert all(isinstance(answer, Unauthenticated) for answer in answers)
    assert (records.looks, records.reads) == (1, 1)


async def test_keys_are_read_again_only_when_some_were_added_or_revoked(
    cache: KeyCache, records: RecordsTwin, times: Times
) -> None:
    records.keys.append(an_api_key("ana")[0])
    for _ in range(3):
        await cache.refresh()
        times.seconds += KeyCache.REFRESH_INTERVAL_SECONDS
    assert (records.looks, records.reads) == (3, 1)


async def test_known_keys_outlast_an_outage_of_the_database_but_not_for_ever(
    cache: KeyCache, records: RecordsTwin, times: Times
) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)
    await cache.find(text)
    records.away = True
    times.seconds = KeyCache.MAX_STALE_SECONDS - 1
    assert await cache.find(text) == key

    times.seconds = KeyCache.MAX_STALE_SECONDS + 1
    with pytest.raises(DatabaseUnavailable):
        await cache.find(text)
    records.away = False
    times.seconds += 1
    assert await cache.find(text) == key


async def test_a_key_that_was_good_stays_good_for_as_long_as_one_says(
    cache: KeyCache, records: RecordsTwin, times: Times
) -> None:
    key, text = an_api_key("ana")
    records.keys.append(key)
    await cache.find(text)
    records.away = True
    times.seconds = 1e6
    assert await cache.find(text, max_stale_seconds=float("inf")) == key
    with pytest.raises(DatabaseUnavailable):
        await cache.find(text)


async def test_an_unknown_key_during_an_outage_is_not_called_wrong(
    cache: KeyCache, records: RecordsTwin
) -> None:
    records.away = True
    with pytest.raises(DatabaseUnavailable):
        await cache.find(an_api_key("ana")[1])


async def test_a_key_that_is_made_while_the_record_is_read_counts_too(
    cache: KeyCache, records: RecordsTwin
) -> None:
    records.hold.clear()
    early = asyncio.create_task(cache.find(an_api_key("ana")[1]))
    await wait_until(lambda: records.looks == 1)
    key, text = an_api_key("ana")
    late = asyncio.create_task(cache.find(text))
    await asyncio.sleep(0)
    records.keys.append(key)
    records.hold.set()

    assert await late == key
    with pytest.raises(Unauthenticated):
        await early


async def test_what_was_used_is_written_down_at_the_end(cache: KeyCache, records: RecordsTwin) -> None:
    used, text = an_api_key("ana")
    records.keys += [used, an_api_key("bob")[0]]
    cache.start()
    await cache.find(text)
    await cache.stop()

    assert list(records.used) == [used.key_id]
