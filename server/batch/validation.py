"""The validation of a batch's input file."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import count
from pathlib import Path

from openai.types import BatchError

from decoding.errors import BadRequest
from server.batch.jsonl import ID_BYTES, LineReader, build_line_error, find_custom_id, hash_custom_id, parse_line

MAX_LINES = 50_000
MAX_ERRORS = 100  # reported for one file


def validate_file(
    path: Path, endpoint: str, max_line_bytes: int
) -> Generator[None, None, tuple[int, list[BatchError]]]:
    """Validate all lines of an input file. Slow: run it in slices.

    Args:
        path: The file.
        endpoint: The batch's endpoint, which the url of each line must equal.
        max_line_bytes: Largest line.

    Yields:
        Nothing, after each line.

    Returns:
        The number of lines that are not blank, and at most `MAX_ERRORS` errors of lines. Validation ends at that many
        errors, and after `MAX_LINES` lines, blank ones included.
    """
    errors: list[BatchError] = []
    ids = set[bytes]()
    lines = 0
    with closing(LineReader(path, max_line_bytes)) as reader:
        for number in count(1):
            if not (text := reader.read()):
                break
            if number > MAX_LINES:
                message = f"The file has more than {MAX_LINES} lines, blank ones included."
                errors.append(BatchError(code="too_many_lines", line=None, message=message, param=None))
                break
            if not text.isspace():
                lines += 1
                errors += validate_line(text, number, endpoint, max_line_bytes, ids)
            if len(errors) == MAX_ERRORS:
                break
            del text  # a pause does not keep it
            yield
    if lines == 0 and not errors:
        errors.append(BatchError(code="empty_file", line=None, message="The file has no lines.", param=None))
    return lines, errors


def validate_line(text: bytes, number: int, endpoint: str, max_bytes: int, ids: set[bytes]) -> list[BatchError]:
    """Validate a line.

    Args:
        text: The line.
        number: Its number, from 1.
        endpoint: The batch's endpoint.
        max_bytes: Largest line.
        ids: Hashes of the custom_ids of earlier lines. That of this line is added.

    Returns:
        At most one error.
    """
    try:
        custom_id = parse_line(text, endpoint, max_bytes).custom_id
    except BadRequest as error:
        return [build_line_error(error, number)]
    # A server that refuses the line later looks at its beginning only, and would give the result the first of two ids.
    if len(text) > ID_BYTES and find_custom_id(text) not in (None, custom_id):
        message = "The line has two different custom_ids."
        return [BatchError(code="duplicate_id", line=number, message=message, param="custom_id")]
    id_hash = hash_custom_id(custom_id)
    if id_hash in ids:
        message = "An earlier line has the same custom_id."
        return [BatchError(code="duplicate_id", line=number, message=message, param="custom_id")]
    ids.add(id_hash)
    return []
