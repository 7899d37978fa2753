"""Answers of AMBER with their annotations."""

from __future__ import annotations

from collections.abc import Sequence
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


def get_annotation(record: JsonRecord, annotations: Sequence[JsonRecord]) -> JsonRecord:
    """Return the annotation that the id of a query or an answer refers to.

    Args:
        record: The query or answer.
        annotations: The records of annotations.json.

    Returns:
        The annotation at the position `id`, counted from 1.

    Raises:
        InputError: The id is not such a position, or the annotation there has another id.
    """  # noqa: DOC502 - `build_error` builds it
    number = record.get_identifier("id")
    if not isinstance(number, int) or not 1 <= number <= len(annotations):
        raise record.build_error(f"{number!r} is not an integer from 1 to {len(annotations)}", "id")
    annotation = annotations[number - 1]
    if annotation.value.get("id", number) != number:
        raise annotation.build_error(f"must be {number} at this position, because answers refer to positions", "id")
    return annotation


def read_answers(files: Sequence[Path], annotations: Path) -> list[AmberAnswer]:
    """Read arrays of `{"id", "response"}` and the official annotations.

    An id that is unknown and a missing field raise `InputError`.

    Args:
        files: Files of answers.
        annotations: The file annotations.json of AMBER.

    Returns:
        The answers with their annotations.

    Raises:
        InputError: An id is repeated.
    """  # noqa: DOC502 - `build_error` builds it
    annotation_records = read_records(annotations)
    ids: set[int | str] = set()
    result = []
    for answer in [record for file in files for record in read_records(file)]:
        annotation = get_annotation(answer, annotation_records)
        number = answer.get_identifier("id")
        if number in ids:
            raise answer.build_error(f"{number} is repeated", "id")
        ids.add(number)
        result.append(AmberAnswer(answer.get_string("response"), annotation.get_string("type"), annotation))
    return result
