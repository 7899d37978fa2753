"""The program that checks grammars: its results, and its bounds on time and memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLTokenizer

from decoding.text.grammar import CHECK_PROGRAM, build_grammar
from decoding.text.grammar_check import (
    STATE_BYTES,
    TOO_LARGE,
    GrammarCheckResult,
    compile_grammar,
    estimate_states,
    multiply_counts,
)
from tests.hostile_schemas import intersect_patterns

SMALL = build_grammar({"type": "object"}).text
OBJECTS: dict[str, Any] = {f"p{number}": {"type": "string", "format": "uri"} for number in range(300)}
LARGE = build_grammar({"type": "object", "properties": OBJECTS}).text


class Program:
    """A running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def check(self, text: str) -> GrammarCheckResult:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(text) + "\n")
        self.process.stdin.flush()
        result: GrammarCheckResult = json.loads(self.process.stdout.readline())
        return result


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    seconds, megabytes = getattr(request, "param", (4, 128))
    command = [sys.executable, "-P", str(CHECK_PROGRAM), str(seconds), str(megabytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Program(process)


def test_check_has_the_reason_and_the_memory(program: Program) -> None:
    small, large = program.check(SMALL), program.check(LARGE)
    assert (small["reason"], small["timed_out"], large["reason"], large["timed_out"]) == ("", False, "", False)
    assert small["num_bytes"] < 4_000_000 < large["num_bytes"] < 20_000_000
    refused = program.check(json.dumps({"type": "wizard"}))
    assert (refused["reason"], refused["timed_out"]) == ("Invalid type: wizard", False)


@pytest.mark.parametrize("count", [15, 40])
def test_memory_is_bounded_and_the_program_goes_on(count: int, program: Program) -> None:
    expected = GrammarCheckResult(reason=TOO_LARGE, timed_out=False, num_bytes=0)
    assert program.check(build_grammar(intersect_patterns(count)).text) == expected
    assert program.check(SMALL)["reason"] == ""


@pytest.mark.parametrize("program", [(0.1, 4000)], indirect=True)
def test_time_is_bounded_and_the_program_goes_on(program: Program) -> None:
    text = build_grammar(intersect_patterns(15)).text
    assert program.check(text) == GrammarCheckResult(reason="", timed_out=True, num_bytes=0)
    assert program.check(SMALL)["reason"] == ""


@pytest.mark.parametrize("program", [(0.3, 128)], indirect=True)
def test_time_in_which_the_program_waits_does_not_count(program: Program) -> None:
    time.sleep(0.4)
    assert not program.check(SMALL)["timed_out"]


def test_program_ends_with_its_input(program: Program) -> None:
    assert program.process.stdin is not None
    program.process.stdin.close()
    assert program.process.wait(timeout=30) == 0


def test_program_imports_nothing_large() -> None:
    script = f"import runpy, sys; runpy.run_path({str(CHECK_PROGRAM)!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def build_string(**keywords: object) -> str:
    return json.dumps({"type": "object", "properties": {"a": {"type": "string", **keywords}}, "required": ["a"]})


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ('{"type": "object"}', 1000, 1100),
        (build_string(format="email"), 1000, 1100),
        (build_string(pattern="^[0-9]{4}-[0-9]{2}$"), 1000, 2000),
        (build_string(pattern="^[^b]*a[^b]{60}$"), 1000, 2000),
        (build_string(pattern="^(.{1,100}){1,100}$"), 100_000, 100_000),
        (build_string(pattern=f"^a{{{'9' * 5000}}}$"), 100_000, 100_000),
        (build_string(minLength=150, maxLength=200), 1778, 4000),
        (build_string(maxLength=10_000), 94_000, 100_000),
        (json.dumps({"type": "integer", "multipleOf": 9973}), 6977, 25_000),
        (json.dumps({"enum": [f"value {number}" for number in range(1000)]}), 5000, 20_000),
        (json.dumps({"type": "number", "multipleOf": 0.01}), 1000, 1100),
        (json.dumps({"patternProperties": {"^.{10000}$": {}}}), 94_000, 100_000),
    ],
)
def test_states_of_a_grammar_are_estimated(text: str, least: int, most: int) -> None:
    """A schema has the states that its answers need. Those of a costly pattern would fill the memory."""
    assert least <= estimate_states(text) <= most


def test_repetitions_of_a_grammar_are_multiplied() -> None:
    assert multiply_counts('start: A{3} B{ 2 , 5 } "c"{+2}\nA: /a{004}/') == 120


def test_answer_takes_no_more_states_than_were_counted(program: Program) -> None:
    """The pattern has 2 ** 60 states. The memory for 100,000 of them, eight times, was beyond all bounds."""
    text = build_string(pattern="^[^b]*a[^b]{60}$")
    matcher, letters, steps = compile_grammar(LLTokenizer("byte"), text), random.Random(0), 0
    assert matcher.consume_tokens(list(b'{"a": "'))
    while not matcher.is_error():
        matcher.consume_token(ord(letters.choice("acd")))
        matcher.compute_bitmask()
        steps += 1
        assert steps < estimate_states(text)
    assert "too many states" in matcher.get_error()
    assert program.check(text)["num_bytes"] >= STATE_BYTES * estimate_states(text)
