"""Check grammars in processes of their own, which bounds the time and the memory that a grammar takes.

llguidance has no limit that holds for every schema: an intersection of a few patterns takes minutes and gigabytes. A
thread could not be stopped, and its memory would be the server's.

    python grammar_check.py SECONDS MEGABYTES

This program reads one grammar a line, each as a JSON string, and writes a `GrammarCheckResult` as a JSON object for
each. It forks a process for every grammar, so that nothing of a grammar remains. It imports nothing of this package, so
that it starts soon and takes little memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Symbols of the grammar: by default llguidance builds 500,000; beyond 65,000 it fails an assertion 300 MB later.
# States of the automaton: a string of 10,000 characters with maxLength takes 94,000. `estimate_states` allows most
# schemas far fewer, because a pattern of 20 characters can have more states than any memory holds.
LIMITS = LLParserLimits(max_grammar_size=60_000, max_lexer_states=100_000)
STATE_BYTES = 1_300  # of a state at most: four for each of 256 bytes, and what is left of its pattern
BASE_STATES = 1_000  # of any schema. Common formats and patterns take up to 300
NAME_STATES = 16  # of a property, beside the letters of its name
LENGTH_STATES = 12  # of each character up to minLength or maxLength. About 9 are needed
PATTERN_FACTOR = 4  # for a length together with a pattern or a format
COUNT = re.compile(r"\{([\s0-9,+]*)\}")  # of a repetition. Blanks may stand in it, and a sign in one of Lark
TOO_LARGE = "it is too large"
MAX_REASON = 1_000  # characters; llguidance appends parts of the grammar
# How the text of a grammar begins that is no JSON schema.
REGEX, LARK, TAGS = "regex:", "lark:", "tags:"
STATUS = Path("/proc/self/status")


class GrammarCheckResult(TypedDict):
    """The result of a check.

    Attributes:
        reason: Reason against the grammar; empty if there is none.
        timed_out: Whether the check was ended because of its time.
        num_bytes: Bytes that the grammar takes while it is compiled, and all states that its answers may reach.
    """

    reason: str
    timed_out: bool
    num_bytes: int


def compile_grammar(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Compile a grammar. The `LLMatcher` holds the reason if this fails.

    The time and the memory hardly depend on the tokenizer, so that a check with bytes as tokens holds for all models.

    Args:
        tokenizer: The tokens.
        text: The grammar.

    Returns:
        The `LLMatcher` at the start of an answer.
    """
    limits = LLParserLimits(max_grammar_size=LIMITS.max_grammar_size, max_lexer_states=estimate_states(text))
    return LLMatcher(tokenizer, convert_grammar(text), log_level=0, limits=limits)


def convert_grammar(text: str) -> str:
    """Return llguidance's form of a grammar."""
    converted: str
    if text.startswith(REGEX):
        converted = LLMatcher.grammar_from_regex(text.removeprefix(REGEX))
    elif text.startswith(LARK):
        converted = LLMatcher.grammar_from_lark(text.removeprefix(LARK))
    elif text.startswith(TAGS):
        converted = LLMatcher.grammar_from_lark(write_tag_grammar(json.loads(text.removeprefix(TAGS))))
    else:
        converted = LLMatcher.grammar_from_json_schema(text)
    return converted


def write_tag_grammar(tags: dict[str, list[tuple[str, Any, str]]]) -> str:
    """Write the Lark grammar of text with tags.

    Args:
        tags: Trigger -> for each of its tags the text after the trigger, the schema of its content, and its end.

    Returns:
        The grammar. A trigger ends the text before it as soon as it is complete.
    """
    lines = [f"start: ({' | '.join(f'tag_{number}' for number in range(len(tags)))})* TEXT", r"TEXT: /(.|\n)*/"]
    for number, (trigger, of_trigger) in enumerate(tags.items()):
        lines.append(f"trigger_{number}[lazy]: TEXT {json.dumps(trigger, ensure_ascii=False)}")
        contents = (
            " ".join([*quote(begin), f"%json {json.dumps(schema)}", *quote(end)]) for begin, schema, end in of_trigger
        )
        lines.append(f"tag_{number}: trigger_{number} ({' | '.join(contents)})")
    return "\n".join(lines)


def quote(text: str) -> list[str]:
    """Return the literal of a text in Lark; none for an empty text."""
    return [json.dumps(text, ensure_ascii=False)] if text else []


def estimate_states(text: str) -> int:
    """Estimate the states of the automaton that the answers to a grammar need, with a margin.

    It is also their limit, so that no answer takes more memory than was counted.

    Args:
        text: The grammar.

    Returns:
        The states, at most those of `LIMITS`.
    """
    if text.startswith((REGEX, LARK)):
        return min(BASE_STATES + count_pattern_states(text), LIMITS.max_lexer_states)
    states, strings, stack = BASE_STATES, dict[str, int](), [json.loads(text.removeprefix(TAGS))]
    if text.startswith(TAGS):
        states += LENGTH_STATES * sum(
            len(trigger) + len(begin) + len(end) for trigger, tags in stack[0].items() for begin, _, end in tags
        )
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            states += count_literal_states(value)
            keywords = [value.get(name) for name in ("minLength", "maxLength", "pattern", "format")]
            strings[json.dumps(keywords)] = count_string_states(value)  # equal strings share their states
            patterns = value.get("patternProperties")
            strings |= {each: count_pattern_states(each) for each in patterns} if isinstance(patterns, dict) else {}
    return min(states + sum(strings.values()), LIMITS.max_lexer_states)


def count_literal_states(schema: dict[str, Any]) -> int:
    """Estimate the states for the names and the fixed values of one object of a schema, and for its `multipleOf`."""
    names, divisor = schema.get("properties"), schema.get("multipleOf")
    states = sum(len(name) + NAME_STATES for name in names) if isinstance(names, dict) else 0
    states += sum(len(json.dumps(schema[name])) for name in ("enum", "const") if name in schema)
    if isinstance(divisor, int | float):  # `find_excess` has bounded its digits
        states += 2 * int(re.sub(r"e.*|\D", "", str(divisor)).strip("0") or 0)
    return states


def count_string_states(schema: dict[str, Any]) -> int:
    """Estimate the states for the length and the pattern of one string of a schema."""
    pattern = schema.get("pattern")
    lengths = [value for name in ("minLength", "maxLength") if isinstance(value := schema.get(name), int | float)]
    states = int(LENGTH_STATES * max(0, *lengths, 0))
    if isinstance(pattern, str):
        return PATTERN_FACTOR * states + count_pattern_states(pattern)
    return PATTERN_FACTOR * states if "format" in schema else states


def count_pattern_states(pattern: str) -> int:
    """Estimate the states of a pattern. Its counts are multiplied, because they may be nested."""
    return LENGTH_STATES * (len(pattern) + multiply_counts(pattern))


def multiply_counts(text: str) -> int:
    """Multiply the counted repetitions of a pattern or of a Lark grammar, as if all of them were nested."""
    return math.prod(map(read_count, COUNT.finditer(text)))


def read_count(found: re.Match[str]) -> int:
    """Return the most repetitions of a match of `COUNT`, at least 1. A number of more than 10 digits is cut."""
    numbers = re.sub(r"[\s+]", "", found[1]).split(",")
    return max(1, *(int(number.lstrip("0")[:10] or 0) for number in numbers))


def find_compile_error(text: str) -> str:
    """Return llguidance's reason against a grammar, compiled with bytes as tokens; empty if it has none."""
    # `LLMatcher.validate_grammar` raises where llguidance panics; an `LLMatcher` reports the panic.
    reason: str = compile_grammar(LLTokenizer("byte"), text).get_error()
    return TOO_LARGE if reason.startswith("panic") else reason[:MAX_REASON]


def check_in_fork(text: str, seconds: float, megabytes: int) -> GrammarCheckResult:
    """Check a grammar in a fork of this process, which must have one thread.

    Args:
        text: The grammar.
        seconds: Time of a core that the check may take, so that it does not depend on other load.
        megabytes: Memory that the fork may take.

    Returns:
        The result. A grammar counts as too large if the fork is killed for its memory.

    Raises:
        RuntimeError: The fork failed for a reason that is not the grammar.
    """
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        run_check(text, writer, seconds, megabytes)
    previous = signal.signal(signal.SIGTERM, partial(end_check, pid))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        output = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.signal(signal.SIGTERM, previous)
    if output:
        result: GrammarCheckResult = json.loads(output)
        return result
    if status > 0:
        raise RuntimeError("A check of a grammar failed.")
    timed_out = status == -signal.SIGPROF
    return GrammarCheckResult(reason="" if timed_out else TOO_LARGE, timed_out=timed_out, num_bytes=0)


def end_check(pid: int, *_: object) -> NoReturn:
    """End this process and the fork of a check. A fork without its parent would be left to process 1 of a container."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)


def run_check(text: str, writer: int, seconds: float, megabytes: int) -> NoReturn:
    """Check a grammar in this process, write the result to a pipe, and end the process."""
    status = 1
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1_000_000,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # a failed allocation prints a traceback
            os.dup2(null, descriptor)
        before = measure_peak_memory()
        reason = find_compile_error(text)
        num_bytes = measure_peak_memory() - before + STATE_BYTES * estimate_states(text)
        result = GrammarCheckResult(reason=reason, timed_out=False, num_bytes=num_bytes)
        os.write(writer, json.dumps(result).encode())
        status = 0
    except MemoryError:
        status = 0
    finally:
        os._exit(status)


def measure_peak_memory() -> int:
    """Return the most bytes of memory that this process has had, without those of mapped files where Linux counts."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    kilobytes = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(sign * int(kilobytes[name].split()[0]) for name, sign in (("VmHWM", 1), ("RssFile", -1))) * 1024


def main() -> None:
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin.buffer:
        result = check_in_fork(json.loads(line), seconds, megabytes)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
