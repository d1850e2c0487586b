"""`avatarforge keys`: who may use the service."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.markup import escape
from rich.table import Table

from avatarforge.access.keys import hash_of, new_key
from avatarforge.cli.terminal import err, out
from avatarforge.domain.access import EVERY, ApiKey, checked_name, checked_pattern
from avatarforge.persistence import ApiKeyRecords, open_engine
from avatarforge.persistence.upgrade import current, latest, upgrade
from avatarforge.settings import Settings, SettingsError, load_settings


class NoScope(SettingsError):
    """A key that could do nothing."""

    def __str__(self) -> str:
        return (
            "Say what the key is for: --customer ID (again for more; 'shop-*' for all that begin so), "
            "--all-customers, or --admin."
        )


class NoSuchKey(SettingsError):
    """No key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id

    def __str__(self) -> str:
        return f"No key has the id {self.key_id!r}. `avatarforge keys list` shows all."


def create_key(
    name: str,
    customers: Sequence[str],
    *,
    administers: bool,
    expires_days: float | None,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """Make a key and show it, this once."""
    if not (customers or administers):
        raise NoScope
    now = datetime.now(UTC)
    key_id, text = new_key()
    key = ApiKey(
        key_id=key_id,
        name=checked_name(name),
        secret_hash=hash_of(text),
        customers=tuple(map(checked_pattern, customers)),
        administers=administers,
        created_at=now,
        expires_at=None if expires_days is None else now + timedelta(days=expires_days),
    )
    with _records(options) as records:
        records.add(key)
    if as_json:
        out.print_json(json.dumps({"key": text, **_told(key, now)}))
        return
    # Alone on standard output, for `KEY=$(avatarforge keys create …)`.
    err.print(f"The key {key_id} ({escape(name)}) for {_scope(key)}. It is shown only now:")
    print(text)


def list_keys(options: dict[str, str], as_json: bool) -> None:
    with _records(options) as records:
        keys = records.all()
    now = datetime.now(UTC)
    if as_json:
        out.print_json(json.dumps([_told(key, now) for key in keys]))
        return
    table = Table("Id", "Name", "For", "State", "Made", "Last used")
    for key in keys:
        table.add_row(
            key.key_id,
            escape(key.name),
            escape(_scope(key)),
            _state(key, now),
            _day(key.created_at),
            _day(key.last_used_at),
        )
    out.print(table)


def revoke_key(key_id: str, options: dict[str, str]) -> None:
    with _records(options) as records:
        if not records.revoke(key_id, datetime.now(UTC)):
            raise NoSuchKey(key_id)
    out.print(f"The key {escape(key_id)} is revoked: within seconds nobody comes in with it.")


@contextmanager
def _records(options: dict[str, str]) -> Iterator[ApiKeyRecords]:
    settings = load_settings(environ={**os.environ, **options})
    _prepare(settings)
    engine = open_engine(settings.database, settings.database_url)
    try:
        yield ApiKeyRecords(engine)
    finally:
        engine.dispose()


def _prepare(settings: Settings) -> None:
    """The embedded database may be made by its first key; others are upgraded when their owner says so."""
    if settings.database.url is None:
        upgrade(settings.database_url)
    elif current(settings.database_url) != latest():
        raise SettingsError("The database is not at this release's schema: run `avatarforge db upgrade`.")


def _told(key: ApiKey, now: datetime) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "customers": list(key.customers),
        "administers": key.administers,
        "state": _state(key, now),
        "createdAt": _time(key.created_at),
        "expiresAt": _time(key.expires_at),
        "revokedAt": _time(key.revoked_at),
        "lastUsedAt": _time(key.last_used_at),
    }


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.is_valid(now) else "expired"


def _scope(key: ApiKey) -> str:
    whom = "every customer" if EVERY in key.customers else ", ".join(key.customers)
    return " and ".join(part for part in (whom, "administration" if key.administers else "") if part)


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def _day(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M")
