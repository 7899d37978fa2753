"""The size of a parsed JSON document, without writing it as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_larger(document: Any, limit: int) -> bool:
    """Return whether a document is larger than a limit.

    A string or a key counts its characters, an integer about its digits, and each value one more. The walk ends at the
    limit, and does not recurse, because the client chooses the depth.

    Args:
        document: Parsed JSON.
        limit: Largest size.
    """
    size, stack = 0, [document]
    while stack and size <= limit:
        value = stack.pop()
        size += 1
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, int):
            size += value.bit_length() // 3
        elif isinstance(value, Mapping):
            size += sum(map(len, value))
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return size > limit
