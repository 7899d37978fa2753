"""Validate a JSON Schema and turn it into a grammar, before an engine sees the request.

A grammar is plain data: the schema as JSON text. Each engine compiles it against its own model's tokens. The text holds
its own whitespace rules (`x-guidance`), so that engines which use llguidance allow the same tokens. The limits here are
those that can be checked without compiling. `decoding/text/grammar_check.py` checks the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from decoding.errors import BadRequest
from decoding.sampling_params import Grammar
from decoding.text.json_size import is_larger

CHECK_PROGRAM = Path(__file__).with_name("grammar_check.py")

TOO_COMPLICATED = "it is too complicated"
MAX_CHARACTERS = 64_000
MAX_DEPTH = 32
MAX_PROPERTIES = 1000  # in the whole schema: the time to compile grows with their square
MAX_REPEATS = 10_000  # value of a keyword that counts: llguidance unrolls some repetitions
MAX_DIVISOR = 10_000  # states of the automaton for `multipleOf`, which is built before any step
REPEAT_KEYWORDS = (
    "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains",
)  # fmt: skip
# One space after commas and colons, none elsewhere: a small model that may add white space adds it without end.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class InvalidSchema(BadRequest):
    """A schema cannot be enforced. `reason` may have several lines; the message holds the first one."""

    def __init__(self, reason: str, param: str | None = "response_format") -> None:
        first_line = reason.partition("\n")[0][:200]
        super().__init__(f"The schema cannot be enforced: {first_line}.", param=param, code="invalid_schema")


def build_grammar(schema: Mapping[str, Any], param: str | None = None) -> Grammar:
    """Build `SamplingParams.grammar` for answers that are instances of a JSON Schema.

    This is too slow for the event loop. It compiles nothing, which takes much longer for some schemas.

    Args:
        schema: A JSON Schema.
        param: Request field that an error names.

    Returns:
        The grammar.

    Raises:
        InvalidSchema: `schema` is too large or too complicated.
    """
    too_large = f"it has more than {MAX_CHARACTERS} characters"
    if is_larger(schema, MAX_CHARACTERS):  # checked before the schema is written, which would hold the interpreter
        raise InvalidSchema(too_large, param)
    if reason := find_excess(schema):
        raise InvalidSchema(reason, param)
    text = json.dumps({**schema, "x-guidance": SPACING})
    if len(text) > MAX_CHARACTERS:
        raise InvalidSchema(too_large, param)
    return Grammar(text)


def find_excess(schema: Mapping[str, Any]) -> str | None:
    """Return the first limit that a schema exceeds; None if it exceeds none."""
    properties, divisor = 0, 1
    for depth, part in iter_objects(schema):
        if depth > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} levels deep"
        named = part.get("properties")
        properties += len(named) if isinstance(named, dict) else 0
        for name in REPEAT_KEYWORDS:
            if isinstance(count := part.get(name), int | float) and count > MAX_REPEATS:
                return f"{name} is larger than {MAX_REPEATS}"
        divisor = math.lcm(divisor, count_significant_digits(part.get("multipleOf")))
        if divisor > MAX_DIVISOR:
            return f"a common multiple of its multipleOf is larger than {MAX_DIVISOR}"
    return f"it has more than {MAX_PROPERTIES} properties" if properties > MAX_PROPERTIES else None


def count_significant_digits(divisor: Any) -> int:
    """Return the digits of a number without sign, point and outer zeros; 1 for 0 and for anything else."""
    if isinstance(divisor, bool) or not isinstance(divisor, int | float):
        return 1
    return int("".join(map(str, Decimal(str(divisor)).as_tuple().digits)).strip("0") or 1)


def iter_objects(schema: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Walk all objects of a schema.

    The walk does not recurse, because the client chooses the depth.

    Yields:
        Depth of an object, and the object.
    """
    stack: list[tuple[int, Any]] = [(0, schema)]
    while stack:
        depth, value = stack.pop()
        if isinstance(value, Mapping):
            yield depth, value
        children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        stack += [(depth + 1, child) for child in children]
