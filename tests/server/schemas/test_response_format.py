"""`response_format`: the grammar that reaches the engine, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import FakeServer, StartServer, check_refusal
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine

SCHEMA = {"type": "object", "properties": {"cats": {"type": "integer"}}}


def schema(schema: Any = SCHEMA, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "cats", "schema": schema} | fields}


@pytest.mark.parametrize(
    ("format", "reached"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (schema(), SCHEMA),
        (schema(strict=True, description="How many cats."), SCHEMA),
    ],
)
async def test_response_format_reaches_engine_as_grammar(server: FakeServer, format: Any, reached: Any) -> None:
    assert (await server.chat(response_format=format)).status_code == 200
    grammar = server.engine.requests[0].sampling.grammar
    given = grammar and json.loads(grammar.text)
    assert server.engine.compiled_grammars == [grammar] * (grammar is not None)
    assert given == (reached and {**reached, "x-guidance": given["x-guidance"]})


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", None),
        ({"response_format": {}}, "response_format.type", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", None),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", None),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        ({"response_format": schema(name="a b")}, "response_format.json_schema.name", None),
        ({"response_format": schema(3)}, "response_format.json_schema.schema", None),
        ({"response_format": schema({"type": "wizard"})}, "response_format.json_schema.schema", "invalid_schema"),
        ({"response_format": schema(), "min_tokens": 3}, "response_format", None),
        ({"response_format": schema(), "ignore_eos": True}, "response_format", None),
        ({"response_format": schema(), "model": "tiny:vote"}, "response_format", "unsupported"),
    ],
)
async def test_invalid_format_is_refused(
    server: FakeServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await server.chat(**fields)
    check_refusal(response, param, code)


async def test_engine_without_grammars_is_unsupported(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"grammar"}))
    response = await server.chat(response_format={"type": "json_object"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")
    assert not server.engine.requests
