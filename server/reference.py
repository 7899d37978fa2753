"""`python -m server.reference docs/api.md` writes the reference of the API from the models that read and write it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
OPENAIS = ("Completion", "TextCompletion", "ResponseDocument")  # described where they come from, but for what we add
ADDED = ("Receipt", "TokenLogprob", "ErrorBody")
BEGIN, END = "<!-- reference -->", "<!-- /reference -->"


def updated(text: str) -> str:
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{rest.split(END)[1]}"


def reference() -> str:
    from decoding import registry
    from server import openapi
    from server.app import create_app
    from server.settings import Settings

    document = openapi.document(create_app(Settings()))
    schemas: dict[str, Schema] = document["components"]["schemas"]
    for name in registry.strategies():  # they have a section of their own
        schemas["Decoding"]["properties"].pop(name, None)
    schemas["Decoding"]["properties"]["strategy"] = {"type": "string", "description": "Names joined by '+'."}
    routes = [
        route(method, path, told) for path, methods in document["paths"].items() for method, told in methods.items()
    ]
    reached = in_order([document["paths"], *({"$ref": f"#/components/schemas/{name}"} for name in ADDED)], schemas)
    parameters = [
        fields(name, strategy.model_json_schema() | {"description": registry.summary(strategy)})
        for name, strategy in registry.strategies().items()
        if strategy.model_fields
    ]
    described = [fields(name, schemas[name]) for name in reached]
    return "\n\n".join(["## Routes", *routes, "## Fields", *described, "## Parameters of the strategies", *parameters])


def route(method: str, path: str, told: Schema) -> str:
    lines = [f"### {method.upper()} {path}", told.get("description") or told["summary"]]
    for word, part in (("Takes", told.get("requestBody", {})), ("Gives", told["responses"].get("200", {}))):
        kinds = [f"{link(each.get('schema', {}))} ({kind})" for kind, each in part.get("content", {}).items()]
        if kinds:
            lines.append(f"{word} {', or '.join(kinds)}.")
    return "\n\n".join(lines)


def fields(name: str, schema: Schema) -> str:
    lines = [f"### {name}"]
    if schema.get("description"):
        lines.append(" ".join(schema["description"].split()))
    rows = [
        row(field, each, field in schema.get("required", ())) for field, each in schema.get("properties", {}).items()
    ]
    table = ["| field | type | |", "|---|---|---|", *rows] if rows else [f"{link(schema)}."]
    return "\n\n".join([*lines, "\n".join(table)])


def row(name: str, schema: Schema, required: bool) -> str:
    told = [
        " ".join(schema.get("description", "").split()),
        bounds(schema),
        "Required." if required else default(schema),
    ]
    return f"| `{name}` | {link(schema)} | {' '.join(filter(None, told)).replace('|', chr(92) + '|')} |"


def link(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"OpenAI's `{name}`" if name in OPENAIS else f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            kinds = dict.fromkeys(link(each) for each in schema[several] if each.get("type") != "null")
            return " or ".join(kinds)
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {link(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def bounds(schema: Schema) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
        "minLength": "characters at least",
        "maxLength": "characters at most",
        "minItems": "entries at least",
        "maxItems": "entries at most",
    }
    found = [
        f"{told} {each[name]}"
        for each in (schema, *schema.get("anyOf", ()))
        for name, told in words.items()
        if name in each
    ]
    return f"({', '.join(found)})" if found else ""


def default(schema: Schema) -> str:
    value = schema.get("default")
    return "" if value is None else f"Default: `{json.dumps(value)}`."


def in_order(start: Any, schemas: dict[str, Schema]) -> list[str]:
    """Every schema that is reached, in the order in which a reader meets it."""
    found: dict[str, None] = {}

    def visit(node: Any) -> None:
        for name in references(node):
            if name not in found and name not in OPENAIS:
                found[name] = None
                visit(schemas[name])

    visit(start)
    return list(found)


def references(node: Any) -> Iterator[str]:
    yield from re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(node))


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(updated(page.read_text()))
