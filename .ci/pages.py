"""Write the pages of docs/ that are made from the code: settings, REST and metrics.

PYTHONPATH=. python .ci/pages.py [--check]      # --check writes nothing, and fails where a page differs
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from avatarforge.cli.settings import list_settings
from avatarforge.ingress.app import create_documented_api
from avatarforge.ingress.rest.openapi import COMMON_ERROR_RESPONSES
from avatarforge.settings import Settings
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import Metric

DOCS = Path(__file__).resolve().parents[1] / "docs"

Schema = Mapping[str, Any]

# --- settings ---------------------------------------------------------------------------------------------

_SETTINGS_HEAD = """# Settings

Each is set by its variable, or under `args` of the application in `serve_config.yaml`; the variable wins.
They are read where the application is built, and handed to its processes on all nodes: the environment of
another node changes nothing, and its log names the variables that say something else.
`avatarforge settings` shows what is in force. This page is made from the code: `make docs`.
"""


def format_settings() -> str:
    """Return the settings and their defaults as Markdown, group by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in list_settings(Settings()):
        group, _, _ = row["name"].rpartition(".")
        groups.setdefault(group, []).append(row)
    return _SETTINGS_HEAD + "".join(_format_group(group, rows) for group, rows in groups.items())


def _format_group(group: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"\n## {group or 'All'}\n", "| variable | default | meaning |", "| --- | --- | --- |"]
    for row in rows:
        default = "" if row["default"] is None else f"`{row['default']}`"
        meaning = " ".join(row["meaning"].split()).replace("|", "\\|")
        lines.append(f"| `{row['variable']}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


# --- metrics ----------------------------------------------------------------------------------------------

_METRICS_HEAD = """\
# Metrics

`GET /metrics` covers the whole application, whichever ingress replica answers; where API keys are required,
it needs one of an administrator. This page is made from the code: `make docs`.

Ingress replicas and the models' replicas report what they count to the trackers every two seconds, and the
trackers add it up. Therefore

- a counter does not fall when a replica stops, announced or not; what it counted in its last two seconds
  may be lost;
- when the first shard's tracker starts again, the sums without a `shard` begin at zero, all together, which
  Prometheus takes for a reset;
- a tracker's own metrics carry its `shard`, so that a restart resets only its own series. Add shards up in
  the query: `sum(rate(...))`;
- counters are exported with 0 before they have counted anything, as far as their labels are known: the first
  failure is a rise that `increase()` sees;
- gauges of a process that has reported nothing for some seconds are absent.

While a tracker does not answer, its series are absent and `avatarforge_tracker_up` is 0. Labels never hold
ids of jobs, customers or replicas. `deploy/grafana/` has a dashboard, `deploy/prometheus/` alert rules with
their tests. The metrics of Ray and Serve have their own names and ports.
"""


def format_metrics() -> str:
    """Return the metrics as Markdown."""
    rows = [_format_metric(metric) for metric in metrics.ALL]
    return "\n".join(
        [_METRICS_HEAD, "| metric | kind | labels | what |", "| --- | --- | --- | --- |", *rows, ""]
    )


def _format_metric(metric: Metric) -> str:
    kind = type(metric).__name__.lower()
    labels = ", ".join(f"`{name}`" for name in metric.label_names)
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} |"


# --- REST -------------------------------------------------------------------------------------------------

_REST_HEAD = """# The REST interface

What `/docs` of a running server shows, and what `avatarforge openapi` prints for generators of clients. This
page is made from the code: `make docs`.

Every error is a problem document ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) whose `code` does not
change. Keys go into `Authorization: Bearer …`; a server that only its own machine reaches asks for none. All
calls but `/healthz` and `/readyz` may besides answer (and `foreign_site` is said to any request):

"""
_BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "at most {}"),
    ("minLength", "at least {} character"),
    ("maxLength", "at most {} characters"),
)


def format_rest() -> str:
    """Return the document as Markdown: every operation, then every schema."""
    document = create_documented_api().openapi()
    groups: dict[str, list[str]] = {}
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_format_operation(method, path, operation))
    sections = (f"\n## {name.capitalize()}\n" + "".join(texts) for name, texts in groups.items())
    schemas = document["components"]["schemas"]
    refusals = "".join(
        f"- {status}: {refusal['description']}\n" for status, refusal in COMMON_ERROR_RESPONSES.items()
    )
    return _REST_HEAD + refusals + "".join(sections) + "\n## Documents\n" + "".join(_format_schemas(schemas))


def _format_operation(method: str, path: str, operation: Schema) -> str:
    parts = [f"\n### {method.upper()} {path}\n", f"\n{operation['description']}\n"]
    if parameters := operation.get("parameters"):
        rows = (
            (f"`{each['name']}`", each["in"], *_format_field(each["schema"], each.get("description")))
            for each in parameters
        )
        parts.append(_format_table(("parameter", "in", "type", "meaning"), rows))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        required = content["schema"].get("required", ())
        parts.append(f"\nThe body is `{media_type}`:\n")
        fields = (
            (f"`{name}`" + (" (needed)" if name in required else ""), *_format_field(field))
            for name, field in content["schema"]["properties"].items()
        )
        parts.append(_format_table(("field", "type", "meaning"), fields))
    responses = (
        (status, _format_response(response))
        for status, response in sorted(operation["responses"].items())
        if response != COMMON_ERROR_RESPONSES.get(int(status))
    )
    parts.append(_format_table(("answer", "meaning"), responses))
    return "".join(parts)


def _format_response(response: Schema) -> str:
    content = response.get("content", {}).get("application/json", {}).get("schema", {})
    kind = f" {_format_type(content)}." if content else ""
    return _join_lines(response["description"].replace("Successful Response", "As asked.")) + kind


def _format_schemas(schemas: Mapping[str, Schema]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"\n### {name}\n"
        if description := schema.get("description"):
            yield f"\n{description}\n"
        if values := schema.get("enum"):
            yield "\n" + ", ".join(f"`{value}`" for value in values) + "\n"
        if fields := schema.get("properties"):
            rows = ((f"`{field}`", *_format_field(value)) for field, value in fields.items())
            yield _format_table(("field", "type", "meaning"), rows)


def _format_field(schema: Schema, description: str | None = None) -> tuple[str, str]:
    """Return the type with its bounds, and the description with the default."""
    meaning = _join_lines(description or schema.get("description") or "")
    default = schema.get("default")
    if default not in (None, "", {}, []):
        meaning += f" By default `{json.dumps(default) if isinstance(default, bool) else default}`."
    return _format_type(schema), meaning.strip()


def _format_type(schema: Schema) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(_format_type(each) for each in choices))
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_format_type(schema.get('items', {}))}"
    bounds = [text.format(schema[name]) for name, text in _BOUNDS if name in schema]
    bounds += [f"`{schema['pattern']}`"] if "pattern" in schema else []
    return ", ".join([schema.get("format") or schema.get("type") or "any", *bounds])


def _format_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(_escape_cell(text) for text in row) for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _join_lines(text: str) -> str:
    return " ".join(text.split())


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": format_settings,
    "rest.md": format_rest,
    "metrics.md": format_metrics,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    for name, format_page in PAGES.items():
        path, page = DOCS / name, format_page()
        if is_check and path.read_text(encoding="utf-8") != page:
            sys.exit(f"docs/{name} is not what the code says: run 'make docs'.")
        if not is_check:
            path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
