"""The lines of a batch: what they ask, what became of them, and which are done already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from openai.types import BatchError
from pydantic import Field

from decoding.errors import BadRequest
from server.errors import explain
from server.wire import Wire, read, read_json

MOST_LINES = 50_000
MOST_ERRORS = 100  # told of one file


class Line(Wire):
    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line


def line_of(text: bytes, endpoint: str) -> Line:
    """Raises: BadRequest."""
    line = read(Line, read_json(text))
    if line.url != endpoint:
        raise BadRequest("The url is not the endpoint of the batch.", param="url", code="mismatched_endpoint")
    return line


def flaws(path: Path, endpoint: str) -> tuple[int, list[BatchError]]:
    """How many lines there are, and what is wrong with them."""
    found: list[BatchError] = []
    seen: set[str] = set()
    number = 0
    for number, text in enumerate(lines(path), start=1):
        try:
            line = line_of(text, endpoint)
            if line.custom_id in seen:
                raise BadRequest("The custom_id is that of an earlier line.", param="custom_id", code="duplicate_id")
            seen.add(line.custom_id)
        except BadRequest as error:
            code = error.code or "invalid_line"
            found.append(BatchError(code=code, line=number, message=error.message, param=error.param))
        if len(found) == MOST_ERRORS:
            break
    if number == 0:
        found.append(BatchError(code="empty_file", line=None, message="The file has no lines.", param=None))
    if number > MOST_LINES:
        message = f"The file has more than {MOST_LINES} lines."
        found.append(BatchError(code="too_many_lines", line=None, message=message, param=None))
    return number, found


def answered(line: Line, body: str) -> bytes:
    return outcome(line, 200, json.loads(body))


def refused(line: Line, error: BaseException) -> bytes:
    explanation = explain(error)
    return outcome(line, explanation.kind.status, explanation.body.model_dump())


def outcome(line: Line, status: int, body: Any) -> bytes:
    told = {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": uuid4().hex, "body": body},
        "error": None,
    }
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def done(path: Path) -> set[str]:
    """The custom_ids that a file of outcomes has; a line that was torn when the server died is cut off."""
    if not path.exists():
        return set()
    whole, seen = 0, set[str]()
    with path.open("rb+") as file:
        for text in file:
            if not text.endswith(b"\n"):
                break
            whole += len(text)
            seen.add(json.loads(text)["custom_id"])
        file.truncate(whole)
    return seen
