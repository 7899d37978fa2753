"""Answers with a format: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from server import response_format
from tests.server.conftest import Serve, Served
from tests.server.fakes import ALL, FakeEngine

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
async def test_the_engine_is_given_a_grammar(served: Served, format: Any, reached: Any) -> None:
    assert (await served.chat(response_format=format)).status_code == 200
    grammar = served.engine.asks[0].sampling.grammar
    given = grammar and json.loads(grammar)
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
async def test_bad_formats(served: Served, fields: dict[str, Any], param: str, code: str | None) -> None:
    response = await served.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_an_engine_without_grammars_refuses(serve: Serve) -> None:
    served = await serve(FakeEngine(capabilities=ALL - {"grammar"}))
    response = await served.chat(response_format={"type": "json_object"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")
    assert not served.engine.asks


async def test_a_schema_that_takes_long_ends_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from decoding import grammar

    monkeypatch.setattr(response_format, "SECONDS", 0.1)
    monkeypatch.setattr(grammar, "grammar_of", lambda *_: time.sleep(1))
    began = time.perf_counter()
    response = await served.chat(response_format=schema())
    assert time.perf_counter() - began < 0.9
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_schema")
