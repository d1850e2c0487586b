"""API keys for tests, and the authorizer of an ingress replica over the record that they are kept in."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from avatarforge.access.authorizer import Authorizer
from avatarforge.access.key_cache import hash_of, new_key
from avatarforge.domain.access import ApiKey
from avatarforge.persistence import ApiKeyRepository, open_engine
from avatarforge.settings import Settings


def records_of(settings: Settings) -> ApiKeyRepository:
    return ApiKeyRepository(open_engine(settings.database, settings.database_url))


def an_authorizer(settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Authorizer:
    """Keys are needed where the settings say `always`."""
    return Authorizer(
        settings.access, records_of(settings), required=settings.access.required == "always", now=now
    )


def an_api_key(
    *customers: str, is_admin: bool = False, expires_in: timedelta | None = None
) -> tuple[ApiKey, str]:
    """A key's record, and the key."""
    key_id, text = new_key()
    now = datetime.now(UTC)
    key = ApiKey(
        key_id=key_id,
        name="for a test",
        secret_hash=hash_of(text),
        customers=customers,
        is_admin=is_admin,
        created_at=now,
        expires_at=None if expires_in is None else now + expires_in,
    )
    return key, text


def kept_key(
    settings: Settings, *customers: str, is_admin: bool = False, expires_in: timedelta | None = None
) -> tuple[ApiKey, str]:
    """As `an_api_key`, on record."""
    key, text = an_api_key(*customers, is_admin=is_admin, expires_in=expires_in)
    records_of(settings).add(key)
    return key, text
