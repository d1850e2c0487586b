"""`avatarforge keys`: create, list and revoke API keys."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.options import DataDirOption, JsonOption, to_variables
from avatarforge.cli.terminal import err, out, report_errors
from avatarforge.domain.access import EVERY_CUSTOMER, ApiKey, validate_name, validate_pattern
from avatarforge.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from avatarforge.persistence import ApiKeyRepository

app = typer.Typer(help="API keys for the service.", no_args_is_help=True)


@app.command("create")
@report_errors
def create_key(
    name: Annotated[str, typer.Argument(help="A name for the key, such as its owner's.")],
    customer: Annotated[
        list[str] | None,
        typer.Option(help="A customer that it can access, or a prefix: 'shop-*'. May be repeated."),
    ] = None,
    all_customers: Annotated[
        bool, typer.Option("--all-customers", help="It can access every customer.")
    ] = False,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="It can read /metrics; with --all-customers also list the customers."),
    ] = False,
    expires_days: Annotated[
        float | None, typer.Option(min=0, max=36_500, help="Days until it expires; by default never.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key and show it once."""
    from avatarforge.access.key_cache import hash_of, new_key

    customers = [*(customer or []), *([EVERY_CUSTOMER] if all_customers else [])]
    if not (customers or admin):
        raise SettingsError(
            "Say what the key can access: --customer ID (may be repeated; 'shop-*' for a prefix), "
            "--all-customers, or --admin."
        )
    now = datetime.now(UTC)
    key_id, text = new_key()
    key = ApiKey(
        key_id=key_id,
        name=validate_name(name),
        secret_hash=hash_of(text),
        customers=tuple(map(validate_pattern, customers)),
        is_admin=admin,
        created_at=now,
        expires_at=None if expires_days is None else now + timedelta(days=expires_days),
    )
    with _open_records(data_dir) as records:
        records.add(key)
    if as_json:
        out.print_json(data={"key": text, **_key_to_json(key, now)})
        return
    # Alone on standard output, for `KEY=$(avatarforge keys create …)`.
    err.print(f"The key {key_id} ({escape(name)}) for {_format_scope(key)}. It is shown only now:")
    print(text)


@app.command("list")
@report_errors
def list_keys(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the API keys: names, access and state, never the secrets."""
    with _open_records(data_dir) as records:
        keys = records.list_all()
    now = datetime.now(UTC)
    if as_json:
        out.print_json(data=[_key_to_json(key, now) for key in keys])
        return
    table = Table("Id", "Name", "For", "State", "Made", "Last used")
    for key in keys:
        table.add_row(
            key.key_id,
            escape(key.name),
            escape(_format_scope(key)),
            _get_state(key, now),
            format_minute(key.created_at),
            format_minute(key.last_used_at),
        )
    out.print(table)


@app.command("revoke")
@report_errors
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="An id of `avatarforge keys list`.")],
    data_dir: DataDirOption = None,
) -> None:
    """Revoke an API key. Running servers refuse it within seconds."""
    with _open_records(data_dir) as records:
        if not records.revoke(key_id, datetime.now(UTC)):
            raise SettingsError(f"No key has the id {key_id!r}. `avatarforge keys list` shows all.")
    out.print(f"The key {escape(key_id)} is revoked: servers refuse it within seconds.")


@contextmanager
def _open_records(data_dir: Path | None) -> "Iterator[ApiKeyRepository]":
    from avatarforge.persistence import ApiKeyRepository

    with open_database(load_settings(environ={**os.environ, **to_variables(data_dir)})) as engine:
        yield ApiKeyRepository(engine)


@contextmanager
def open_database(settings: Settings) -> "Iterator[Engine]":
    """The database, made or upgraded if it is the embedded one."""
    from avatarforge.persistence import open_engine

    prepare_database(settings)
    engine = open_engine(settings.database, settings.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


def prepare_database(settings: Settings) -> None:
    """Create or upgrade the embedded database; another is only upgraded by `avatarforge db upgrade`."""
    from avatarforge.persistence.upgrade import current, latest, upgrade

    if settings.database.url is None:
        upgrade(settings.database_url)
    elif current(settings.database_url) != latest():
        raise SettingsError("The database is not at this release's schema: run `avatarforge db upgrade`.")


def _key_to_json(key: ApiKey, now: datetime) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "customers": list(key.customers),
        "administers": key.is_admin,
        "state": _get_state(key, now),
        "createdAt": _format_time(key.created_at),
        "expiresAt": _format_time(key.expires_at),
        "revokedAt": _format_time(key.revoked_at),
        "lastUsedAt": _format_time(key.last_used_at),
    }


def _get_state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.is_valid(now) else "expired"


def _format_scope(key: ApiKey) -> str:
    whom = "every customer" if EVERY_CUSTOMER in key.customers else ", ".join(key.customers)
    return " and ".join(part for part in (whom, "administration" if key.is_admin else "") if part)


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def format_minute(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M")
