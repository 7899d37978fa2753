"""Numbers for a terminal."""

from __future__ import annotations

from collections.abc import Mapping


def printed(columns: Mapping[str, Mapping[str, object]]) -> str:
    """One column for each scorer, one row for each number; the notes below."""
    rows = dict.fromkeys(name for numbers in columns.values() for name in numbers if name != "notes")
    width = max(map(len, rows))
    head = " " * width + "".join(f"{name:>14}" for name in columns)
    body = [
        f"{row:<{width}}" + "".join(f"{_cell(numbers.get(row)):>14}" for numbers in columns.values()) for row in rows
    ]
    notes = []
    for name, numbers in columns.items():
        reasons = numbers.get("notes")
        if isinstance(reasons, Mapping):
            notes += [f"{name}: {row} has no value: {reason}" for row, reason in reasons.items()]
    return "\n".join([head, *body, *notes])


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
