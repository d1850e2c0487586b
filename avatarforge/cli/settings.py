"""`avatarforge settings`: the settings in force."""

from typing import Any

from pydantic import SecretStr
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.terminal import out
from avatarforge.settings import Settings, load_settings, variables


def show_settings(as_json: bool) -> None:
    rows = list_settings(load_settings())
    if as_json:
        out.print_json(data=rows)
        return
    table = Table("Variable", "Value", "Meaning")
    table.columns[0].no_wrap = True
    for row in rows:
        value, default = _format_value(row["value"]), _format_value(row["default"])
        if value != default:
            value = f"[bold]{escape(value)}[/] (default {escape(default) or 'none'})"
        table.add_row(row["variable"], value, escape(row["meaning"]))
    out.print(table)


def list_settings(settings: Settings) -> list[dict[str, Any]]:
    """Return for each setting its `name`, `variable`, `value` in force, `default` and `meaning`."""
    return [_describe_setting(name, path, settings) for name, path in variables().items()]


def _describe_setting(variable: str, path: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    value, default, owner = settings, Settings(), Settings
    for part in path:
        field = owner.model_fields[part]
        owner = field.annotation  # type: ignore[assignment]  # a group, but for the last part
        value, default = getattr(value, part), getattr(default, part)
    return {
        "name": ".".join(path),
        "variable": variable,
        "value": _to_json(value),
        "default": _to_json(default),
        "meaning": field.description or "",
    }


def _to_json(value: object) -> Any:
    if isinstance(value, SecretStr):
        return "**********"
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _format_value(value: object) -> str:
    return "" if value is None else str(value)
