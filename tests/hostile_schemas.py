"""JSON schemas that take much time and memory to compile."""

from __future__ import annotations

from typing import Any


def intersect_patterns(count: int) -> dict[str, Any]:
    """Return a schema of texts that contain all of `count` words. Each word triples the time and the memory."""
    return {"allOf": [{"type": "string", "pattern": f".*a{number}.*"} for number in range(count)]}
