"""What an answer must look like: a JSON Schema, checked before any engine sees it.

A grammar is plain data, the schema as JSON text; every engine compiles it against its own model's tokens. The text says
itself how it wants to be read (`x-guidance`), so that engines which do it with llguidance allow the same tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from decoding.errors import BadRequest

MOST_CHARACTERS = 64_000
MOST_DEPTH = 32
MOST_PROPERTIES = 1000  # all together: the time to compile grows with their square
MOST_REPEATS = 10_000  # of anything that a schema counts: llguidance unrolls some of it
MOST_STATES = 10_000  # of the automaton for what the schema's numbers shall be divided by: it is made before any step
# Symbols of the grammar. Left to itself llguidance makes 500,000, and fails an assertion beyond 65,000, 300 MB later.
LIMITS = LLParserLimits(max_grammar_size=60_000)
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains")
# One space after commas and colons, none elsewhere: a small model that may add white space adds it without end.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(schema: Mapping[str, Any], param: str | None = None) -> str:
    """`Sampling.grammar` for answers that are instances of the schema. Takes a while: not for the event loop.

    Raises:
        BadRequest: it is no JSON Schema, uses what cannot be enforced token by token, or is too large; names `param`.
    """
    if reason := too_large(schema):
        raise refused(reason, param)
    text = json.dumps({**schema, "x-guidance": SPACING})
    if reason := too_long(text) or unenforceable(text):
        raise refused(reason, param)
    return text


def unenforceable(text: str) -> str:
    """llguidance's reason, with bytes for tokens; empty if there is none. (Its validation raises where it panics.)"""
    reason: str = LLMatcher(LLTokenizer("byte"), compiled(text), log_level=0, limits=LIMITS).get_error()
    return "it is too large" if reason.startswith("panic") else reason


def compiled(grammar: str) -> str:
    """As llguidance reads it."""
    return LLMatcher.grammar_from_json_schema(grammar)


def refused(reason: str, param: str | None = "response_format") -> BadRequest:
    first = reason.partition("\n")[0][:200]
    return BadRequest(f"The schema cannot be enforced: {first}.", param=param, code="invalid_schema")


def too_long(text: str) -> str | None:
    return f"it has more than {MOST_CHARACTERS} characters" if len(text) > MOST_CHARACTERS else None


def too_large(schema: Mapping[str, Any]) -> str | None:
    properties, divisor = 0, 1
    for depth, part in parts(schema):
        if depth > MOST_DEPTH:
            return f"it is nested more than {MOST_DEPTH} levels deep"
        named = part.get("properties")
        properties += len(named) if isinstance(named, dict) else 0
        for name in COUNTS:
            if isinstance(count := part.get(name), int | float) and count > MOST_REPEATS:
                return f"{name} is larger than {MOST_REPEATS}"
        divisor = math.lcm(divisor, digits(part.get("multipleOf")))
        if divisor > MOST_STATES:
            return f"a common multiple of its multipleOf is larger than {MOST_STATES}"
    return f"it has more than {MOST_PROPERTIES} properties" if properties > MOST_PROPERTIES else None


def digits(divisor: Any) -> int:
    """Of a number, without sign, point and outer zeros; 1 of what is none, and of 0."""
    if isinstance(divisor, bool) or not isinstance(divisor, int | float):
        return 1
    return int("".join(map(str, Decimal(str(divisor)).as_tuple().digits)).strip("0") or 1)


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Every object in it, with its depth. Without recursion: the depth is the client's choice."""
    todo: list[tuple[int, Any]] = [(0, schema)]
    while todo:
        depth, value = todo.pop()
        if isinstance(value, Mapping):
            yield depth, value
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        todo += [(depth + 1, each) for each in inside]
