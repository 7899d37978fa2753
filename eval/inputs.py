"""Reads JSON lines, and files that are one JSON array, so that every error names file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import InputError

ANSWER_KEYS = ("answer", "text", "caption", "response")
"""Where answer files keep what the model said: the official POPE script, LLaVA and VCD, captioners, AMBER."""


@dataclass(frozen=True)
class Record:
    """One object of a file, and where it stands: on a line (from 1), or in an array (from 0), `within` a field."""

    value: dict[str, Any]
    file: Path
    line: int | None = None
    index: int | None = None
    within: str = ""

    def error(self, problem: str, field: str | None = None) -> InputError:
        if self.index is None:
            return InputError(problem, self.file, self.line, field)
        return InputError(problem, self.file, None, f"{self.within}[{self.index}]" + (f".{field}" if field else ""))

    def field(self, *keys: str) -> str:
        """The first of `keys` that the object has."""
        for key in keys:
            if key in self.value:
                return key
        raise self.error("is missing" if len(keys) == 1 else f"is missing, and so are {', '.join(keys[1:])}", keys[0])

    def text(self, *keys: str) -> str:
        """The text under the first of `keys` that the object has."""
        key = self.field(*keys)
        value = self.value[key]
        if not isinstance(value, str):
            raise self.error(f"must be a text, not {kind(value)}", key)
        return value

    def texts(self, key: str) -> list[str]:
        value = self.value[self.field(key)]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error("must be a list of texts", key)
        return value

    def identifier(self, key: str) -> int | str:
        value = self.value[self.field(key)]
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.error(f"must be a whole number or a text, not {kind(value)}", key)
        return value


def kind(value: object) -> str:
    """What JSON calls it."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def records(file: Path) -> list[Record]:
    """All objects of a file of JSON lines or of one JSON array, whichever it is.

    Raises:
        InputError: unreadable, not UTF-8, not JSON, no objects, or none at all.
    """
    found = list(_array(file) if _content(file).lstrip()[:1] == b"[" else _lines(file))
    if not found:
        raise InputError("holds no objects", file)
    return found


def document(file: Path) -> dict[str, Any]:
    """A file that is one JSON object."""
    value = _json(_content(file), file)
    if not isinstance(value, dict):
        raise InputError(f"must be one JSON object, not {kind(value)}", file)
    return value


def lines(file: Path) -> list[str]:
    """The lines of a text file, without their ends."""
    try:
        return [line.rstrip("\r") for line in _content(file).decode().split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file) from error


def _content(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), file) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise InputError("is UTF-16 or UTF-32, not UTF-8", file)
    return content.removeprefix(b"\xef\xbb\xbf")


def _lines(file: Path) -> Iterator[Record]:
    # Split at \n alone: what a model says may hold the other characters that Python counts as line ends.
    content = _content(file).rstrip()
    for number, line in enumerate(content.split(b"\n") if content else [], start=1):
        if not line.strip():
            raise InputError("the line is empty", file, number)
        yield _record(_json(line, file, number), Record({}, file, line=number))


def _array(file: Path) -> Iterator[Record]:
    for index, value in enumerate(_json(_content(file), file)):
        yield _record(value, Record({}, file, index=index))


def _record(value: object, place: Record) -> Record:
    if not isinstance(value, dict):
        raise place.error(f"must be a JSON object, not {kind(value)}")
    return Record(value, place.file, place.line, place.index)


def _json(content: bytes, file: Path, line: int | None = None) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file, line) from error
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", file, line or error.lineno) from error
    except RecursionError as error:
        raise InputError("is nested too deeply", file, line) from error
