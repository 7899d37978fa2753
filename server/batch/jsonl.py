"""The JSON lines of batches: input lines, output lines, and the lines that are already finished."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import orjson
from openai.types import BatchError
from pydantic import Field
from pydantic_core import from_json

from decoding.errors import BadRequest
from server.errors import BodyTooLarge, ErrorResponse
from server.schemas.base import StrictModel, parse_json, validate
from server.schemas.json_bounds import check_json_bounds

# Read from a file at once. Each read releases the interpreter for an instant. An event loop that waits for it misses
# that, and begins its wait anew.
READ_BYTES = 1 << 18
ID_BYTES = 16_384  # at the beginning of a refused line, in which its custom_id is looked for


class BatchLine(StrictModel):
    """One request of a batch."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str = Field(max_length=512)
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was valid when its batch was created. A server with smaller bounds refuses it.

    Attributes:
        custom_id: The custom_id of the line.
        error: The reason.
    """

    custom_id: str
    error: BadRequest


class LineReader:
    """Reads the lines of a file, blank ones included. It keeps none of them."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Create a reader, which opens the file at the first line.

        Args:
            path: The file.
            max_bytes: Largest line. A longer line is read without its end, one byte longer than that.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None

    def read(self) -> bytes:
        """Return the next line, or nothing at the end."""
        if self._file is None:
            self._file = self._path.open("rb", READ_BYTES)
        line = part = self._file.readline(self._max_bytes + 1)
        while len(part) > self._max_bytes and not part.endswith(b"\n"):
            part = self._file.readline(self._max_bytes + 1)
        return line

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def parse_line(text: bytes, endpoint: str, max_bytes: int) -> BatchLine:
    """Parse an input line.

    Args:
        text: The line.
        endpoint: The batch's endpoint, which the line's url must equal.
        max_bytes: Largest line.

    Returns:
        The line, whose body is not validated yet.

    Raises:
        BodyTooLarge: The line is longer than `max_bytes`.
        BadRequest: The line is not valid, or has another url.
    """
    if len(text) > max_bytes:
        message = f"The line is larger than {max_bytes // 1_000_000} MB."
        raise BodyTooLarge(message, code="request_too_large")
    data_urls = check_json_bounds(text)
    line = validate(BatchLine, parse_json(text, data_urls))
    if line.url != endpoint:
        raise BadRequest("The url is not the endpoint of the batch.", param="url", code="mismatched_endpoint")
    return line


def parse_validated_line(text: bytes, endpoint: str, max_bytes: int) -> BatchLine | RefusedLine:
    """Parse a line of a validated file.

    Args:
        text: The line.
        endpoint: The batch's endpoint.
        max_bytes: Largest line, which may be smaller than at the validation.

    Returns:
        The line, or its custom_id and the reason for which it is refused now.

    Raises:
        BadRequest: The line is refused, and its custom_id is not known.
    """
    try:
        return parse_line(text, endpoint, max_bytes)
    except BadRequest as error:
        custom_id = find_custom_id(text)
        if custom_id is None:
            raise
        return RefusedLine(custom_id, error)


def find_custom_id(text: bytes) -> str | None:
    """Find the custom_id at the beginning of a line whose end may be missing."""
    try:
        custom_id = from_json(text[:ID_BYTES], allow_partial=True)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return custom_id if isinstance(custom_id, str) else None


def build_line_error(error: BadRequest, number: int) -> BatchError:
    """Build the error of a batch that names a line."""
    return BatchError(code=error.code or "invalid_line", line=number, message=error.message, param=error.param)


def format_answer(line: BatchLine, body: bytes) -> bytes:
    """Format the output line of an answered request.

    Args:
        line: The input line.
        body: The response as JSON.

    Returns:
        The line with its line break.
    """
    return format_result(line, 200, orjson.Fragment(body))


def format_error(line: BatchLine | RefusedLine, error_response: ErrorResponse) -> bytes:
    """Format the output line of a failed request."""
    return format_result(line, error_response.spec.status, error_response.body.model_dump())


def format_result(line: BatchLine | RefusedLine, status: int, body: Any) -> bytes:
    result = {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": uuid4().hex, "body": body},
        "error": None,
    }
    return orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)


def recover_finished_ids(path: Path, known_ids: Set[bytes] = frozenset()) -> Generator[None, None, set[bytes]]:
    """Recover the results of an earlier process. Slow: run it in slices.

    Lines that a crash has left incomplete or damaged are removed, and so are second results of a request. The end of
    the file is cut off, and other bytes become spaces before the next line. No other line is written, so that a crash
    now damages none, and a full disk needs no room.

    Args:
        path: The output file.
        known_ids: Hashes of the custom_ids with a result in another file.

    Yields:
        Nothing, after each line.

    Returns:
        The hashes of the custom_ids of the remaining lines.
    """
    if not path.exists():
        return set()
    ids, end, position = set[bytes](), 0, 0
    damaged: list[tuple[int, int]] = []  # start and end of each line to remove before a good one
    pending: list[tuple[int, int]] = []
    with path.open("rb+", READ_BYTES) as file:
        while text := file.readline():
            start, position = position, position + len(text)
            custom_id = parse_finished_id(text)
            del text  # a pause does not keep it
            id_hash = None if custom_id is None else hash_custom_id(custom_id)
            if id_hash is None or id_hash in known_ids or id_hash in ids:
                pending.append((start, position))
            else:
                ids.add(id_hash)
                end = position
                damaged += pending
                pending.clear()
            yield
        if end < position:
            file.truncate(end)
        blank_lines(file, damaged)
    return ids


def hash_custom_id(custom_id: str) -> bytes:
    """Return the hash by which a custom_id is remembered. The ids of a file can take 200 MB."""
    return blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def blank_lines(file: BinaryIO, spans: Sequence[tuple[int, int]]) -> None:
    """Overwrite lines with spaces. Their line breaks follow when the rest is on disk: they end the damage until then.

    Args:
        file: The file, open for writing.
        spans: Start and end of each line.
    """
    for start, stop in spans:
        file.seek(start)
        file.write(b" " * (stop - start - 1))
    file.flush()
    os.fsync(file.fileno())
    for _, stop in spans:
        file.seek(stop - 1)
        file.write(b" ")
    if spans:
        file.flush()
        os.fsync(file.fileno())


def parse_finished_id(text: bytes) -> str | None:
    """Return the custom_id of an output line, or None if the line is damaged."""
    try:
        result = from_json(text)
        is_whole = text.endswith(b"\n") and isinstance(result["response"], dict)
        return result["custom_id"] if is_whole and isinstance(result["custom_id"], str) else None
    except (ValueError, KeyError, TypeError):
        return None
