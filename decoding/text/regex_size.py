"""Bound regular expressions before they are compiled.

llguidance builds the automaton of an expression while an answer is generated. The counted repetitions of an expression
unroll, and nested ones multiply: the automaton of `((a{999}){999}){999}` takes seconds of one step.
"""

from __future__ import annotations

import re

from decoding.text.grammar_check import COUNT, read_count

OPEN_CLASS, CLOSE_CLASS = "[", "]"
# Bounded, because an opening brace without a closing one is tried at each escape. A longer name counts as characters.
ESCAPE_WITH_BRACES = re.compile(r"\\[pPxuU]\{[^}]{0,64}\}")


def count_unrolled_atoms(pattern: str) -> int:
    """Count the characters and classes of an expression, each as often as its counted repetitions repeat it.

    Args:
        pattern: The expression. It need not be valid.

    Returns:
        The number. Groups that are not closed count once.
    """
    sums, last, position = [0], 0, 0  # atoms of each open group, and of the newest atom in the innermost one
    while position < len(pattern):
        character = pattern[position]
        if count := COUNT.match(pattern, position):
            sums[-1] += last * (read_count(count) - 1)
            last *= read_count(count)
            position = count.end()
            continue
        if character == "(":
            sums.append(0)
            last = 0
        elif character == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif character not in "?*+|^$":
            sums[-1] += 1
            last = 1
        position = skip_atom(pattern, position)
    return sum(sums)


def skip_atom(pattern: str, position: int) -> int:
    """Return the position after the character, the escape or the class at `position`."""
    if pattern[position] == "\\":
        escape = ESCAPE_WITH_BRACES.match(pattern, position)
        return escape.end() if escape else position + 2
    if pattern[position] != OPEN_CLASS:
        return position + 1
    depth = 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 1
        else:
            depth += (pattern[position] == OPEN_CLASS) - (pattern[position] == CLOSE_CLASS)
        position += 1
        if depth == 0:
            break
    return position
