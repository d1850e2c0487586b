"""The commands that show something."""

import json
import os
from typing import Any

from pydantic import SecretStr
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.terminal import FAILURE, out
from avatarforge.settings import Settings, load_settings, variables

# --- settings ------------------------------------------------------------------------------------------


def show_settings(as_json: bool) -> None:
    """Every setting, made from the code: nothing is listed by hand."""
    rows = settings_rows(load_settings())
    if as_json:
        out.print_json(json.dumps(rows))
        return
    table = Table("Variable", "Value", "Meaning")
    table.columns[0].no_wrap = True
    for row in rows:
        value, default = _cell(row["value"]), _cell(row["default"])
        shown = (
            value if value == default else f"[bold]{escape(value)}[/] (default {escape(default) or 'none'})"
        )
        table.add_row(row["variable"], shown, escape(row["meaning"]))
    out.print(table)


def settings_page() -> str:
    """The settings and their defaults as Markdown, group by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in settings_rows(Settings()):
        group, _, _ = row["name"].rpartition(".")
        groups.setdefault(group, []).append(row)
    return _PAGE + "".join(_section(group, rows) for group, rows in groups.items())


_PAGE = """# Settings

Each is set by its variable, or under `args` of the application in `serve_config.yaml`; the variable wins.
`avatarforge settings` shows what is in force. This page is made from the code: `make docs`.
"""


def _section(group: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"\n## {group or 'All'}\n", "| variable | default | meaning |", "| --- | --- | --- |"]
    for row in rows:
        default = "" if row["default"] is None else f"`{row['default']}`"
        meaning = " ".join(row["meaning"].split()).replace("|", "\\|")
        lines.append(f"| `{row['variable']}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def settings_rows(settings: Settings) -> list[dict[str, Any]]:
    """One row a setting: `name`, `variable`, `value` in force, `default` and `meaning`."""
    return [_row(name, path, settings) for name, path in variables().items()]


def _row(variable: str, path: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    value, default, owner = settings, Settings(), Settings
    for part in path:
        field = owner.model_fields[part]
        owner = field.annotation  # type: ignore[assignment]  # a group, but for the last part
        value, default = getattr(value, part), getattr(default, part)
    return {
        "name": ".".join(path),
        "variable": variable,
        "value": _plain(value),
        "default": _plain(default),
        "meaning": field.description or "",
    }


def _plain(value: object) -> Any:
    if isinstance(value, SecretStr):
        return "**********"
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _cell(value: object) -> str:
    return "" if value is None else str(value)


# --- database ------------------------------------------------------------------------------------------


def upgrade_database(options: dict[str, str]) -> None:
    from avatarforge.persistence import upgrade

    settings = load_settings(environ={**os.environ, **options})
    before = upgrade.current(settings.database_url) if _exists(settings) else None
    upgrade.upgrade(settings.database_url)
    after = upgrade.current(settings.database_url)
    out.print(f"{_shown(settings)} is at revision {after}" + (" (as before)." if after == before else "."))


def show_database(options: dict[str, str], as_json: bool) -> None:
    from avatarforge.persistence import upgrade

    settings = load_settings(environ={**os.environ, **options})
    # Looking at a database that is not there would make an empty one.
    revision = upgrade.current(settings.database_url) if _exists(settings) else None
    latest = upgrade.latest()
    if as_json:
        out.print_json(json.dumps({"current": revision, "latest": latest, "upToDate": revision == latest}))
    else:
        state = (
            "up to date" if revision == latest else f"the latest is {latest}: run `avatarforge db upgrade`"
        )
        out.print(f"{_shown(settings)}: {revision or 'empty'} ({state})")
    if revision != latest:
        raise SystemExit(FAILURE)


def _exists(settings: Settings) -> bool:
    return settings.database.url is not None or (settings.data_dir / "avatarforge.db").exists()


def _shown(settings: Settings) -> str:
    from sqlalchemy import make_url

    return make_url(settings.database_url).render_as_string(hide_password=True)
