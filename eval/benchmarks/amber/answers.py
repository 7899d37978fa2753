"""Answers of AMBER with their annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.core.jsonl import JsonRecord, read_records

GENERATIVE = "generative"
"""The type of the annotations of captions. All other types are yes/no questions."""


@dataclass(frozen=True)
class AmberAnswer:
    """One answer and the annotation that its id refers to."""

    response: str
    type: str
    annotation: JsonRecord


def read_answers(answers: Path, annotations: Path) -> list[AmberAnswer]:
    """Read an array of `{"id", "response"}` and the official annotations.

    An id that is unknown or repeated, and a missing field, raise `InputError`.

    Args:
        answers: File of the answers.
        annotations: The file annotations.json of AMBER.

    Returns:
        The answers with their annotations.
    """
    annotation_records = read_records(annotations)
    ids: set[int | str] = set()
    result = []
    for answer in read_records(answers):
        number = answer.get_identifier("id")
        if not isinstance(number, int) or not 1 <= number <= len(annotation_records):
            raise answer.build_error(f"{number!r} is not an integer from 1 to {len(annotation_records)}", "id")
        if number in ids:
            raise answer.build_error(f"{number} is repeated", "id")
        ids.add(number)
        annotation = annotation_records[number - 1]
        if annotation.value.get("id", number) != number:
            raise annotation.build_error(f"must be {number} at this position, because answers refer to positions", "id")
        result.append(AmberAnswer(answer.get_string("response"), annotation.get_string("type"), annotation))
    return result
