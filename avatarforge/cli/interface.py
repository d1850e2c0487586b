"""The REST interface's description: the OpenAPI document, and the page docs/rest.md that is made from it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from avatarforge.ingress.api import described_api
from avatarforge.ingress.documentation import REFUSALS

Schema = Mapping[str, Any]

_INTRODUCTION = """# The REST interface

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


def description() -> str:
    """The OpenAPI document as JSON."""
    return json.dumps(described_api().openapi(), indent=2) + "\n"


def page() -> str:
    """The document as Markdown: every call, then every document that calls answer with."""
    document = described_api().openapi()
    groups: dict[str, list[str]] = {}
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_call(method, path, operation))
    calls = (f"\n## {name.capitalize()}\n" + "".join(texts) for name, texts in groups.items())
    schemas = document["components"]["schemas"]
    refusals = "".join(f"- {status}: {refusal['description']}\n" for status, refusal in REFUSALS.items())
    return _INTRODUCTION + refusals + "".join(calls) + "\n## Documents\n" + "".join(_documents(schemas))


def _call(method: str, path: str, operation: Schema) -> str:
    parts = [f"\n### {method.upper()} {path}\n", f"\n{operation['description']}\n"]
    if parameters := operation.get("parameters"):
        rows = (
            (f"`{each['name']}`", each["in"], *_meaning(each["schema"], each.get("description")))
            for each in parameters
        )
        parts.append(_table(("parameter", "in", "type", "meaning"), rows))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        required = content["schema"].get("required", ())
        parts.append(f"\nThe body is `{media_type}`:\n")
        fields = (
            (f"`{name}`" + (" (needed)" if name in required else ""), *_meaning(field))
            for name, field in content["schema"]["properties"].items()
        )
        parts.append(_table(("field", "type", "meaning"), fields))
    answers = (
        (status, _answer(response))
        for status, response in sorted(operation["responses"].items())
        if response != REFUSALS.get(int(status))
    )
    parts.append(_table(("answer", "meaning"), answers))
    return "".join(parts)


def _answer(response: Schema) -> str:
    content = response.get("content", {}).get("application/json", {}).get("schema", {})
    kind = f" {_type(content)}." if content else ""
    return _one_line(response["description"].replace("Successful Response", "As asked.")) + kind


def _documents(schemas: Mapping[str, Schema]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"\n### {name}\n"
        if description := schema.get("description"):
            yield f"\n{description}\n"
        if values := schema.get("enum"):
            yield "\n" + ", ".join(f"`{value}`" for value in values) + "\n"
        if fields := schema.get("properties"):
            rows = ((f"`{field}`", *_meaning(value)) for field, value in fields.items())
            yield _table(("field", "type", "meaning"), rows)


def _meaning(schema: Schema, description: str | None = None) -> tuple[str, str]:
    """The type with its bounds, and what is said of it with its default."""
    meaning = _one_line(description or schema.get("description") or "")
    default = schema.get("default")
    if default not in (None, {}, []):
        meaning += f" By default `{json.dumps(default) if isinstance(default, bool) else default}`."
    return _type(schema), meaning.strip()


def _type(schema: Schema) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in choices))
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [text.format(schema[name]) for name, text in _BOUNDS if name in schema]
    bounds += [f"`{schema['pattern']}`"] if "pattern" in schema else []
    return ", ".join([schema.get("format") or schema.get("type") or "any", *bounds])


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(text) for text in row) for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
