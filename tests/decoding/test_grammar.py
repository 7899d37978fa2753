"""Which schemas are taken. Hostile ones are refused at once."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from llguidance import LLParserLimits

from decoding import grammar
from decoding.errors import BadRequest
from decoding.grammar import MOST_PROPERTIES, SPACING, grammar_of


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def with_properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


def lists(count: int) -> dict[str, Any]:
    """Each a rule of its own that is thousands of symbols long."""
    properties = {
        f"p{i}": {"type": "array", "items": {"type": "integer"}, "minItems": 5000 + i, "maxItems": 9000 + i}
        for i in range(count)
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def divided(*divisors: float) -> dict[str, Any]:
    return {"allOf": [{"type": "number", "multipleOf": divisor} for divisor in divisors]}


TAKEN: list[dict[str, Any]] = [
    {"type": "object"},
    {},
    nested(15),
    with_properties(MOST_PROPERTIES),
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(a|aa)*" * 200 + "b"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
    {"enum": ["x" * length for length in range(300)]},
    {"type": "object", "properties": {"minItems": {"type": "integer"}}},
    lists(3),
    divided(0.01, 5, 1000, 1e6),
]
REFUSED: list[dict[str, Any]] = [
    {"type": "wizard"},
    {"properties": 3},
    {"not": {}},
    {"type": "string", "format": "nonsense"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000},
    {"type": "string", "pattern": "a(?=b)"},
    {"type": "string", "maxLength": 10**9},
    {"type": "array", "minItems": 10**9},
    {"type": "array", "items": {"type": "array", "minItems": 1e300}},
    {"$ref": "http://169.254.169.254/x"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/$defs/nowhere"},
    {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
    nested(5000),
    with_properties(MOST_PROPERTIES + 1),
    {"enum": ["x" * 64_000]},
    lists(80),
    divided(1_000_003),
    divided(9973, 9967),
    divided(997, 0.991),
    divided(0, 1_000_003),
    divided(10**400),
    divided(float("nan")),
    {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(8)]} for i in range(8)]},
]


@pytest.mark.parametrize("schema", TAKEN, ids=itertools.count())
def test_taken(schema: dict[str, Any]) -> None:
    assert json.loads(grammar_of(schema)) == schema | {"x-guidance": SPACING}


@pytest.mark.parametrize("schema", REFUSED, ids=itertools.count())
def test_refused_at_once(schema: dict[str, Any]) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        grammar_of(schema, "response_format.json_schema.schema")
    assert time.perf_counter() - began < 2
    assert (refused.value.param, refused.value.code) == ("response_format.json_schema.schema", "invalid_schema")
    assert len(refused.value.message) < 300


def test_what_llguidance_stumbles_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit reached in a place where it does not expect that."""
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_grammar_size=48040))
    with pytest.raises(BadRequest, match="too large"):
        grammar_of(lists(6))


def test_a_request_cannot_say_how_its_schema_is_read() -> None:
    assert json.loads(grammar_of({"x-guidance": {"whitespace_flexible": True}}))["x-guidance"] == SPACING
