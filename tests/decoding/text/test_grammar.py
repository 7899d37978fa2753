"""Schemas that are accepted, and hostile ones that are rejected quickly."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from llguidance import LLParserLimits

from decoding.errors import BadRequest
from decoding.text import grammar_check
from decoding.text.grammar import MAX_PROPERTIES, SPACING, InvalidSchema, build_grammar
from decoding.text.grammar_check import find_compile_error


def nest_arrays(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def with_properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


def make_long_lists(count: int) -> dict[str, Any]:
    """Build `count` rules that are thousands of symbols long."""
    properties = {
        f"p{i}": {"type": "array", "items": {"type": "integer"}, "minItems": 5000 + i, "maxItems": 9000 + i}
        for i in range(count)
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def make_divisors(*divisors: float) -> dict[str, Any]:
    return {"allOf": [{"type": "number", "multipleOf": divisor} for divisor in divisors]}


ACCEPTED: list[dict[str, Any]] = [
    {"type": "object"},
    {},
    nest_arrays(15),
    with_properties(MAX_PROPERTIES),
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(a|aa)*" * 200 + "b"},
    {"type": "string", "pattern": "(a{100}){100}"},
    {"properties": {"pattern": {"type": "string"}, "patternProperties": {"type": "string"}}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
    {"enum": ["x" * length for length in range(300)]},
    {"type": "object", "properties": {"minItems": {"type": "integer"}}},
    make_long_lists(3),
    make_divisors(0.01, 5, 1000, 1e6),
]
REFUSED: list[dict[str, Any]] = [
    {"type": "wizard"},
    {"properties": 3},
    {"not": {}},
    {"type": "string", "format": "nonsense"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000},
    {"type": "string", "pattern": "a(?=b)"},
    {"type": "string", "pattern": "((a{999}){999}){999}"},
    {"type": "string", "pattern": f"a{{{'9' * 5000}}}"},
    {"type": "string", "pattern": "(?ix)(a{9#\n99}){9#\n99}"},
    {"patternProperties": {"((a{ 99 }){ 99 }){ 99 }": {}}},
    {"type": "string", "maxLength": 10**9},
    {"type": "array", "minItems": 10**9},
    {"type": "array", "items": {"type": "array", "minItems": 1e300}},
    {"$ref": "http://169.254.169.254/x"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/$defs/nowhere"},
    {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
    nest_arrays(5000),
    with_properties(MAX_PROPERTIES + 1),
    {"enum": ["x" * 64_000]},
    make_long_lists(80),
    make_divisors(1_000_003),
    make_divisors(9973, 9967),
    make_divisors(997, 0.991),
    make_divisors(0, 1_000_003),
    make_divisors(10**400),
    make_divisors(float("nan")),
    {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(8)]} for i in range(8)]},
]


def build_checked(schema: dict[str, Any], param: str | None = None) -> str:
    """Build a grammar, and check it in this process. Return its text."""
    text = build_grammar(schema, param).text
    if reason := find_compile_error(text):
        raise InvalidSchema(reason, param)
    return text


@pytest.mark.parametrize("schema", ACCEPTED, ids=itertools.count())
def test_schema_is_accepted(schema: dict[str, Any]) -> None:
    assert json.loads(build_checked(schema)) == schema | {"x-guidance": SPACING}


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize("schema", REFUSED, ids=itertools.count())
def test_schema_is_rejected_quickly(schema: dict[str, Any]) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        build_checked(schema, "response_format.json_schema.schema")
    assert time.perf_counter() - began < 2
    assert (refused.value.param, refused.value.code) == ("response_format.json_schema.schema", "invalid_schema")
    assert len(refused.value.message) < 300


def test_large_schema_is_rejected_before_it_is_written() -> None:
    schema = {"enum": ["é" * 9_000_000]}
    started_at = time.thread_time()
    with pytest.raises(BadRequest, match="more than 64000 characters"):
        build_grammar(schema)
    assert time.thread_time() - started_at < 0.02


def test_llguidance_panic_is_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here llguidance reaches its limit in a place that does not handle it."""
    monkeypatch.setattr(grammar_check, "LIMITS", LLParserLimits(max_grammar_size=48040))
    with pytest.raises(BadRequest, match="too large"):
        build_checked(make_long_lists(6))


def test_request_cannot_override_the_spacing() -> None:
    assert json.loads(build_grammar({"x-guidance": {"whitespace_flexible": True}}).text)["x-guidance"] == SPACING
