"""`avatarforge webhooks`: the secrets that receivers of webhooks have of their own."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.keys import format_minute, open_database
from avatarforge.cli.options import DataDirOption, JsonOption, to_variables
from avatarforge.cli.terminal import err, out, report_errors
from avatarforge.domain.access import validate_pattern
from avatarforge.domain.deliveries import WebhookSecret
from avatarforge.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from avatarforge.persistence import DeliveryRepository

app = typer.Typer(help="Secrets of webhooks' receivers.", no_args_is_help=True)


@app.command("create")
@report_errors
def create_secret(
    customers: Annotated[
        str, typer.Argument(help="The customer whose webhooks it signs, or a prefix: 'shop-*'.")
    ],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a secret of a receiver's own and show it once."""
    made = _new_secret(validate_pattern(customers), datetime.now(UTC))
    settings = _load_settings(data_dir)
    ours = _our_secret(settings)
    with _open_records(settings) as records:
        records.add_secret(made)
    _show(made, ours, as_json)


@app.command("rotate")
@report_errors
def rotate_secret(
    secret_id: Annotated[str, typer.Argument(help="An id of `avatarforge webhooks list`.")],
    overlap_days: Annotated[
        float, typer.Option(min=0, max=365, help="Days for which the old secret signs beside the new one.")
    ] = 7,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a secret in place of another, which goes on signing for a while, and show it once."""
    now = datetime.now(UTC)
    settings = _load_settings(data_dir)
    ours = _our_secret(settings)
    with _open_records(settings) as records:
        old = next((each for each in records.list_secrets() if each.secret_id == secret_id), None)
        if old is None:
            raise SettingsError(f"No secret has the id {secret_id!r}. `avatarforge webhooks list` shows all.")
        made = _new_secret(old.customers, now)
        records.rotate_secret(secret_id, made, now + timedelta(days=overlap_days))
    _show(made, ours, as_json)


@app.command("list")
@report_errors
def list_secrets(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the receivers' secrets: for whom and how long, never the secrets themselves."""
    with _open_records(_load_settings(data_dir)) as records:
        found = records.list_secrets()
    if as_json:
        out.print_json(data=[_to_json(secret) for secret in found])
        return
    now = datetime.now(UTC)
    table = Table("Id", "For", "State", "Made", "Expires")
    for secret in found:
        table.add_row(
            secret.secret_id,
            escape(secret.customers),
            "valid" if secret.is_valid(now) else "expired",
            format_minute(secret.created_at),
            format_minute(secret.expires_at),
        )
    out.print(table)


def _load_settings(data_dir: Path | None) -> Settings:
    return load_settings(environ={**os.environ, **to_variables(data_dir)})


@contextmanager
def _open_records(settings: Settings) -> "Iterator[DeliveryRepository]":
    from avatarforge.persistence import DeliveryRepository

    with open_database(settings) as engine:
        yield DeliveryRepository(engine)


def _our_secret(settings: Settings) -> str:
    """Return the secret of ours from which receivers' follow. Raises `SettingsError` without a valid one."""
    from avatarforge.webhooks.signing import Signer

    ours = list(settings.webhook.signing_secrets)
    if not ours and settings.webhook_secret_file.exists():
        ours = [settings.webhook_secret_file.read_text(encoding="ascii").strip()]
    if not ours:
        raise SettingsError(
            "There is no secret to sign webhooks with: set AVATARFORGE_WEBHOOK_SECRETS as the server has it, "
            "or let `avatarforge up` make one first."
        )
    Signer(ours)  # A bad secret is found before anything is on record.
    return ours[0]


def _new_secret(customers: str, now: datetime) -> WebhookSecret:
    return WebhookSecret(secret_id=secrets.token_hex(8), customers=customers, created_at=now)


def _show(secret: WebhookSecret, ours: str, as_json: bool) -> None:
    from avatarforge.webhooks.signing import derive_secret

    text = derive_secret(ours, secret.secret_id)
    if as_json:
        out.print_json(data={"secret": text, **_to_json(secret)})
        return
    # Alone on standard output, as that of `avatarforge keys create` is.
    err.print(f"The secret {secret.secret_id} for {escape(secret.customers)}. It is shown only now:")
    print(text)


def _to_json(secret: WebhookSecret) -> dict[str, str | None]:
    expires_at = None if secret.expires_at is None else secret.expires_at.isoformat(timespec="seconds")
    return {
        "id": secret.secret_id,
        "customers": secret.customers,
        "createdAt": secret.created_at.isoformat(timespec="seconds"),
        "expiresAt": expires_at,
    }
