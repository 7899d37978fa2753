"""Writes the API reference from the request and response schemas: `python -m server.api_reference docs/api.md`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
# Our response models and the types of OpenAI's that they extend. OpenAI's documentation describes those.
OPENAI_TYPES = {
    "ChatCompletionResponse": "ChatCompletion",
    "TextCompletionResponse": "Completion",
    "ResponsesResponse": "Response",
}
EXTRA_SCHEMAS = ("Receipt", "LogprobEntry", "ErrorBody")  # described although no route refers to them
BEGIN, END = "<!-- reference -->", "<!-- /reference -->"
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "entries at least",
    "maxItems": "entries at most",
}


def update_page(text: str) -> str:
    """Return a page with a fresh reference between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{render_reference()}\n\n{END}{rest.split(END)[1]}"


def render_reference() -> str:
    """Render routes, schemas and strategy parameters as Markdown."""
    from decoding import registry
    from server.app import create_app
    from server.routes import openapi
    from server.settings import Settings

    document = openapi.build_document(create_app(Settings()))
    schemas: dict[str, Schema] = document["components"]["schemas"]
    for name in registry.list_strategies():  # they have a section of their own
        schemas["Decoding"]["properties"].pop(name, None)
    schemas["Decoding"]["properties"]["strategy"] = {"type": "string", "description": "Names joined by '+'."}
    routes = [
        render_route(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    roots = [document["paths"], *({"$ref": f"#/components/schemas/{name}"} for name in EXTRA_SCHEMAS)]
    fields = [render_schema(name, schemas[name]) for name in list_reachable(roots, schemas)]
    parameters = [
        render_schema(name, strategy.model_json_schema() | {"description": registry.get_summary(strategy)})
        for name, strategy in registry.list_strategies().items()
        if strategy.model_fields
    ]
    return "\n\n".join(["## Routes", *routes, "## Fields", *fields, "## Parameters of the strategies", *parameters])


def render_route(method: str, path: str, operation: Schema) -> str:
    lines = [f"### {method.upper()} {path}", operation.get("description") or operation["summary"]]
    bodies = {"Request": operation.get("requestBody", {}), "Response": operation["responses"].get("200", {})}
    for label, body in bodies.items():
        types = [
            f"{render_type(media.get('schema', {}))} ({media_type})"
            for media_type, media in body.get("content", {}).items()
        ]
        if types:
            lines.append(f"{label}: {', or '.join(types)}.")
    return "\n\n".join(lines)


def render_schema(name: str, schema: Schema) -> str:
    lines = [f"### {name}"]
    if schema.get("description"):
        lines.append(" ".join(schema["description"].split()))
    required = schema.get("required", ())
    rows = [render_row(field, child, field in required) for field, child in schema.get("properties", {}).items()]
    table = ["| field | type | |", "|---|---|---|", *rows] if rows else [f"{render_type(schema)}."]
    return "\n\n".join([*lines, "\n".join(table)])


def render_row(name: str, schema: Schema, is_required: bool) -> str:
    description = [
        " ".join(schema.get("description", "").split()),
        render_bounds(schema),
        "Required." if is_required else render_default(schema),
    ]
    return f"| `{name}` | {render_type(schema)} | {' '.join(filter(None, description)).replace('|', chr(92) + '|')} |"


def render_type(schema: Schema) -> str:
    """Render the type of a schema, with a link if it has a section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"OpenAI's `{OPENAI_TYPES[name]}`" if name in OPENAI_TYPES else f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            types = dict.fromkeys(render_type(member) for member in schema[union] if member.get("type") != "null")
            return " or ".join(types)
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {render_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def render_bounds(schema: Schema) -> str:
    bounds = [
        f"{words} {part[keyword]}"
        for part in (schema, *schema.get("anyOf", ()))
        for keyword, words in BOUNDS.items()
        if keyword in part
    ]
    return f"({', '.join(bounds)})" if bounds else ""


def render_default(schema: Schema) -> str:
    value = schema.get("default")
    return "" if value is None else f"Default: `{json.dumps(value)}`."


def list_reachable(roots: Any, schemas: dict[str, Schema]) -> list[str]:
    """Return the names of all schemas that the roots reach, in the order of the page."""
    names: dict[str, None] = {}

    def visit(node: Any) -> None:
        for name in iter_references(node):
            if name not in names and name not in OPENAI_TYPES:
                names[name] = None
                visit(schemas[name])

    visit(roots)
    return list(names)


def iter_references(node: Any) -> Iterator[str]:
    yield from re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(node))


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(update_page(page.read_text()))
