"""Validate a JSON Schema and turn it into a grammar, before an engine sees the request.

A grammar is plain data: the schema as JSON text. Each engine compiles it against its own model's tokens. The text holds
its own whitespace rules (`x-guidance`), so that engines which use llguidance allow the same tokens. The limits here are
those that can be checked without compiling. `decoding/text/grammar_check.py` checks the rest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

from decoding.errors import BadRequest
from decoding.sampling_params import Grammar
from decoding.text.grammar_check import LARK, REGEX, TAGS, multiply_counts
from decoding.text.json_size import is_larger
from decoding.text.regex_size import count_unrolled_atoms

# The check reads a grammar with bytes as tokens, and `find_excess` reads only the schemas of `build_grammar`.
FORBIDDEN_IN_LARK = {
    "<[": "would name a token of the model by its number",
    "<|": "would name a special token of the model",
    "&": "is not supported: intersections can be costly",
    "~": "is not supported: write repetitions as {2,5}",
    "%json": "is not supported: send the schema as json",
}
# The flag x of an expression allows comments, which could hide repetitions from the count. In Lark it may follow a /.
VERBOSE_FLAG = re.compile(r"(?<!\\)\(\?[a-zA-Z-]*x")
LARK_VERBOSE_FLAG = re.compile(VERBOSE_FLAG.pattern + r"|/[imslu]*x\b")
VERBOSE = "the flag x of a regular expression is not supported"
CHECK_PROGRAM = Path(__file__).with_name("grammar_check.py")

TOO_COMPLICATED = "it is too complicated"
MAX_CHARACTERS = 64_000
MAX_ATOMS = 2000  # of a regular expression with its repetitions: one step with twice as many takes about 50 ms
MAX_DEPTH = 32
MAX_PROPERTIES = 1000  # in the whole schema: the time to compile grows with their square
MAX_REPEATS = 10_000  # value of a keyword that counts, and atoms of a pattern: llguidance unrolls repetitions
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


def build_regex_grammar(pattern: str, param: str | None = None) -> Grammar:
    """Build `SamplingParams.grammar` for answers that match a regular expression of Rust's syntax.

    Args:
        pattern: The expression. It matches the whole answer.
        param: Request field that an error names.

    Returns:
        The grammar, which is not compiled.

    Raises:
        InvalidSchema: The expression is too long, also once its repetitions are unrolled, or has the flag x.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise InvalidSchema(f"it has more than {MAX_CHARACTERS} characters", param)
    if VERBOSE_FLAG.search(pattern):
        raise InvalidSchema(VERBOSE, param)
    if count_unrolled_atoms(pattern) > MAX_ATOMS:
        raise InvalidSchema(f"it has more than {MAX_ATOMS} characters and classes with their repetitions", param)
    return Grammar(REGEX + pattern)


def build_lark_grammar(text: str, param: str | None = None) -> Grammar:
    """Build `SamplingParams.grammar` for answers that match a grammar of llguidance's Lark syntax.

    Args:
        text: The grammar.
        param: Request field that an error names.

    Returns:
        The grammar, which is not compiled.

    Raises:
        InvalidSchema: The grammar is too long, names tokens of the model, or contains a JSON schema.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidSchema(f"it has more than {MAX_CHARACTERS} characters", param)
    for forbidden, reason in FORBIDDEN_IN_LARK.items():
        if forbidden in text:
            raise InvalidSchema(f"'{forbidden}' {reason}", param)
    if LARK_VERBOSE_FLAG.search(text):
        raise InvalidSchema(VERBOSE, param)
    if multiply_counts(text) > MAX_ATOMS:
        raise InvalidSchema(f"the product of its repetitions is larger than {MAX_ATOMS}", param)
    return Grammar(LARK + text)


def build_choice_grammar(choices: Sequence[str], param: str | None = None) -> Grammar:
    """Build `SamplingParams.grammar` for answers that are one of several texts."""
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if len(alternatives) > MAX_CHARACTERS:
        raise InvalidSchema(f"it has more than {MAX_CHARACTERS} characters", param)
    return Grammar(f"{LARK}start: {alternatives}")


@dataclass(frozen=True, slots=True)
class Tag:
    """A part of an answer whose content is JSON."""

    begin: str
    schema: Mapping[str, Any]
    end: str


def build_tag_grammar(tags: Sequence[Tag], triggers: Sequence[str], param: str | None = None) -> Grammar:
    """Build `SamplingParams.grammar` for answers that are text, in which a tag follows each trigger.

    Args:
        tags: The tags.
        triggers: Texts with which tags begin. A tag belongs to the first that it begins with.
        param: Request field that an error names.

    Returns:
        The grammar, which is not compiled.

    Raises:
        InvalidSchema: A tag begins with no trigger, a trigger begins another one, or a schema is too large or too
            complicated.
    """
    schemas = {"tags": [tag.schema for tag in tags]}
    too_large = f"the tags have more than {MAX_CHARACTERS} characters"
    if is_larger(schemas, MAX_CHARACTERS):
        raise InvalidSchema(too_large, param)
    if reason := find_excess(schemas):
        raise InvalidSchema(reason, param)
    by_trigger: dict[str, list[tuple[str, Any, str]]] = {}
    for tag in tags:
        trigger = next((each for each in triggers if tag.begin.startswith(each)), None)
        if trigger is None:
            raise InvalidSchema(f"'{tag.begin[:100]}' begins with no trigger", param)
        content = {**tag.schema, "x-guidance": SPACING}
        by_trigger.setdefault(trigger, []).append((tag.begin[len(trigger) :], content, tag.end))
    for one, other in permutations(by_trigger, 2):
        if other.startswith(one):  # the shorter one always ends the text first
            raise InvalidSchema(f"the trigger '{one[:100]}' begins another trigger", param)
    text = json.dumps(by_trigger)
    if len(text) > MAX_CHARACTERS:
        raise InvalidSchema(too_large, param)
    return Grammar(TAGS + text)


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
        for pattern in list_patterns(part):
            if VERBOSE_FLAG.search(pattern):
                return VERBOSE
            if count_unrolled_atoms(pattern) > MAX_REPEATS:
                return f"a pattern has more than {MAX_REPEATS} characters and classes with their repetitions"
        divisor = math.lcm(divisor, count_significant_digits(part.get("multipleOf")))
        if divisor > MAX_DIVISOR:
            return f"a common multiple of its multipleOf is larger than {MAX_DIVISOR}"
    return f"it has more than {MAX_PROPERTIES} properties" if properties > MAX_PROPERTIES else None


def list_patterns(part: Mapping[str, Any]) -> list[str]:
    """List the regular expressions of one object of a schema."""
    pattern, named = part.get("pattern"), part.get("patternProperties")
    return [*([pattern] if isinstance(pattern, str) else ()), *(named if isinstance(named, dict) else ())]


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
