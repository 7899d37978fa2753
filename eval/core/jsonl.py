"""Readers of JSON lines and JSON arrays whose errors name file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import InputError

ANSWER_KEYS = ("answer", "text", "caption", "response")
"""Keys of the model's text in answer files: the official POPE script, LLaVA and VCD, captioners, AMBER."""


@dataclass(frozen=True)
class JsonRecord:
    """One object of a file and its position, so that errors can name it.

    Attributes:
        value: The object.
        file: The file.
        line: Line number, counted from 1, in a file of JSON lines.
        index: Index, counted from 0, in an array.
        parent: The key of the array inside the file's object, empty if the file is the array.
    """

    value: dict[str, Any]
    file: Path
    line: int | None = None
    index: int | None = None
    parent: str = ""

    def build_error(self, problem: str, field: str | None = None) -> InputError:
        """Build an error that names the position of this record."""
        if self.index is None:
            return InputError(problem, self.file, self.line, field)
        return InputError(problem, self.file, None, f"{self.parent}[{self.index}]" + (f".{field}" if field else ""))

    def find_first_key(self, *keys: str) -> str:
        """Return the first of `keys` that the object has.

        Raises:
            InputError: The object has none of them.
        """  # noqa: DOC502 - `build_error` builds it
        for key in keys:
            if key in self.value:
                return key
        raise self.build_error(
            "is missing" if len(keys) == 1 else f"is missing, and so are {', '.join(keys[1:])}", keys[0]
        )

    def get_string(self, *keys: str) -> str:
        """Return the string under the first of `keys` that the object has.

        Raises:
            InputError: The object has none of them, or the value is not a string.
        """  # noqa: DOC502 - `build_error` builds it
        key = self.find_first_key(*keys)
        value = self.value[key]
        if not isinstance(value, str):
            raise self.build_error(f"must be a string, not {get_json_type(value)}", key)
        return value

    def get_strings(self, key: str) -> list[str]:
        """Return the list of strings under `key`.

        Raises:
            InputError: The object has no such key, or the value is not a list of strings.
        """  # noqa: DOC502 - `build_error` builds it
        value = self.value[self.find_first_key(key)]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.build_error("must be a list of strings", key)
        return value

    def get_identifier(self, key: str) -> int | str:
        """Return the integer or string under `key`.

        Raises:
            InputError: The object has no such key, or the value is neither an integer nor a string.
        """  # noqa: DOC502 - `build_error` builds it
        value = self.value[self.find_first_key(key)]
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.build_error(f"must be an integer or a string, not {get_json_type(value)}", key)
        return value


def get_json_type(value: object) -> str:
    """Return the JSON name of the type of a value."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


def read_records(file: Path) -> list[JsonRecord]:
    """Read all objects of a file of JSON lines or of one JSON array.

    Unreadable files, other encodings than UTF-8, invalid JSON and values that are not objects raise `InputError`.

    Args:
        file: The file.

    Returns:
        The objects, at least one.

    Raises:
        InputError: The file has no objects.
    """
    records = list(_iter_array(file) if _read_bytes(file).lstrip()[:1] == b"[" else _iter_lines(file))
    if not records:
        raise InputError("has no objects", file)
    return records


def read_object(file: Path) -> dict[str, Any]:
    """Read a file that is one JSON object.

    Args:
        file: The file.

    Returns:
        The object.

    Raises:
        InputError: The file is another JSON value. Unreadable files and invalid JSON raise it as well.
    """
    value = _parse_json(_read_bytes(file), file)
    if not isinstance(value, dict):
        raise InputError(f"must be one JSON object, not {get_json_type(value)}", file)
    return value


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file, without line ends.

    Args:
        file: The file.

    Returns:
        The lines.

    Raises:
        InputError: The file is not UTF-8. Unreadable files raise it as well.
    """
    try:
        return [line.rstrip("\r") for line in _read_bytes(file).decode().split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file) from error


def _read_bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), file) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise InputError("is UTF-16 or UTF-32, not UTF-8", file)
    return content.removeprefix(b"\xef\xbb\xbf")


def _iter_lines(file: Path) -> Iterator[JsonRecord]:
    # Only \n separates lines: generated text may contain the other characters that Python treats as line ends.
    content = _read_bytes(file).rstrip()
    for number, line in enumerate(content.split(b"\n") if content else [], start=1):
        if not line.strip():
            raise InputError("the line is empty", file, number)
        yield _check_object(_parse_json(line, file, number), JsonRecord({}, file, line=number))


def _iter_array(file: Path) -> Iterator[JsonRecord]:
    for index, value in enumerate(_parse_json(_read_bytes(file), file)):
        yield _check_object(value, JsonRecord({}, file, index=index))


def _check_object(value: object, position: JsonRecord) -> JsonRecord:
    if not isinstance(value, dict):
        raise position.build_error(f"must be a JSON object, not {get_json_type(value)}")
    return JsonRecord(value, position.file, position.line, position.index)


def _parse_json(content: bytes, file: Path, line: int | None = None) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file, line) from error
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", file, line or error.lineno) from error
    except RecursionError as error:
        raise InputError("is nested too deeply", file, line) from error
