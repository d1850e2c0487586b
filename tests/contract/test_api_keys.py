"""What the record of keys and tickets promises, over SQLite and MariaDB alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select

from avatarforge.access.key_cache import hash_of
from avatarforge.persistence import ApiKeyRepository
from avatarforge.persistence.tables import access_tickets
from tests.keys import an_api_key

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)


@pytest.fixture
def keys(engine: Engine) -> ApiKeyRepository:
    return ApiKeyRepository(engine)


def test_a_key_is_read_as_it_was_added(keys: ApiKeyRepository) -> None:
    key, _ = an_api_key("ana", "shop-*", is_admin=True, expires_in=timedelta(days=1))
    plain, _ = an_api_key()
    keys.add(key)
    keys.add(plain)

    assert keys.list_all() == [key, plain]


def test_a_revoked_key_stays_on_record_with_the_time_of_its_first_revocation(keys: ApiKeyRepository) -> None:
    key, _ = an_api_key("ana")
    keys.add(key)

    assert keys.revoke(key.key_id, NOW)
    assert keys.revoke(key.key_id, SOON)
    assert keys.list_all() == [replace(key, revoked_at=NOW)]


def test_revoking_a_key_that_is_not_there_tells_so(keys: ApiKeyRepository) -> None:
    assert not keys.revoke("nobody", NOW)


def test_the_fingerprint_changes_with_every_addition_and_revocation(keys: ApiKeyRepository) -> None:
    seen = [keys.get_fingerprint()]
    added = [an_api_key("ana")[0] for _ in range(2)]
    for key in added:
        keys.add(key)
        seen.append(keys.get_fingerprint())
    keys.revoke(added[0].key_id, NOW)
    seen.append(keys.get_fingerprint())
    keys.note_use({added[1].key_id: NOW})

    assert len(set(seen)) == len(seen)
    assert keys.get_fingerprint() == seen[-1]


def test_somebody_can_come_in_only_with_a_key_that_is_valid(keys: ApiKeyRepository) -> None:
    assert not keys.has_valid(NOW)
    short, _ = an_api_key("ana", expires_in=timedelta(hours=1))
    keys.add(short)
    assert short.expires_at is not None
    assert keys.has_valid(short.created_at)
    assert not keys.has_valid(short.expires_at)
    endless, _ = an_api_key("ana")
    keys.add(endless)
    assert keys.has_valid(short.expires_at)
    keys.revoke(endless.key_id, NOW)
    assert not keys.has_valid(short.expires_at)


def test_the_latest_use_is_kept(keys: ApiKeyRepository) -> None:
    key, _ = an_api_key("ana")
    keys.add(key)
    for at in (NOW, SOON, NOW):
        keys.note_use({key.key_id: at, "nobody": at})

    assert keys.list_all() == [replace(key, last_used_at=SOON)]


def test_a_ticket_is_taken_once(keys: ApiKeyRepository) -> None:
    keys.keep_ticket(hash_of("t"), "key", "ana", NOW, SOON)

    assert keys.take_ticket(hash_of("t"), "ana", NOW) == "key"
    assert keys.take_ticket(hash_of("t"), "ana", NOW) is None


@pytest.mark.parametrize(
    ("text", "customer_id", "now"),
    [("u", "ana", NOW), ("t", "bob", NOW), ("t", "Ana", NOW), ("t", "ana", SOON)],
)
def test_a_ticket_of_another_text_customer_or_time_is_none(
    keys: ApiKeyRepository, text: str, customer_id: str, now: datetime
) -> None:
    keys.keep_ticket(hash_of("t"), "key", "ana", NOW, SOON)

    assert keys.take_ticket(hash_of(text), customer_id, now) is None


def test_of_many_replicas_that_show_one_ticket_at_once_one_comes_in(keys: ApiKeyRepository) -> None:
    for number in range(5):
        keys.keep_ticket(hash_of(str(number)), "key", "ana", NOW, SOON)
    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            answers = list(
                threads.map(lambda _, text=str(number): keys.take_ticket(hash_of(text), "ana", NOW), range(8))
            )
            assert sorted(answers, key=str) == [None] * 7 + ["key"]


def test_expired_tickets_go_when_a_new_one_comes(keys: ApiKeyRepository, engine: Engine) -> None:
    keys.keep_ticket(hash_of("old"), "key", "ana", NOW, SOON)
    keys.keep_ticket(hash_of("new"), "key", "ana", SOON, SOON + timedelta(seconds=30))

    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(access_tickets)) == 1
