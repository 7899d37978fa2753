"""AMBER's answers beside their annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.inputs import Record, records


@dataclass(frozen=True)
class Item:
    """One answer, and the annotation that stands at the place its id names."""

    response: str
    kind: str
    annotation: Record


def items(answers: Path, annotations: Path) -> list[Item]:
    """From an array of `{"id", "response"}` and the official annotations.

    Raises:
        InputError: an id that is unknown or comes twice, or a field that is missing.
    """
    known = records(annotations)
    seen: set[int | str] = set()
    found = []
    for answer in records(answers):
        number = answer.identifier("id")
        if not isinstance(number, int) or not 1 <= number <= len(known):
            raise answer.error(f"{number!r} is no number from 1 to {len(known)}", "id")
        if number in seen:
            raise answer.error(f"{number} comes twice", "id")
        seen.add(number)
        annotation = known[number - 1]
        if annotation.value.get("id", number) != number:
            raise annotation.error(f"must be {number} in this place, as answers are looked up by it", "id")
        found.append(Item(answer.text("response"), annotation.text("type"), annotation))
    return found
