"""Strict validation of request bodies: unknown fields are refused, and each refusal names the field as it was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from decoding.errors import MAX_SHOWN_NAME, BadRequest
from server.schemas.json_bounds import INVALID_JSON

MAX_PARTS = 2048  # content parts of one message
MAX_MESSAGES = 1024
MAX_TOKEN_BOUND = (1 << 31) - 1  # of a field that bounds tokens; every context is smaller
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 64) - 1  # orjson, which writes the responses, has no larger ones
STRING_SLICE = 262_144  # bytes of a long string that are decoded in one call
# A piece of a JSON string that ends after a character: not within an escape, nor within a pair of surrogates.
WHOLE_CHARACTERS = re.compile(rb"(?:[^\\]++|\\u[dD][89abAB]..\\u....|\\u(?![dD][89abAB])....|\\[^u])*+", re.DOTALL)


class StrictModel(BaseModel):
    """A part of a request. It has no unknown fields, and its values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=StrictModel)
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


def get_json_type(value: Any) -> str | None:
    """Return the tag of a value in a union of a string with an array or an object."""
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict | BaseModel) else None


STRING_OR_ARRAY = Discriminator(
    get_json_type, custom_error_type="string_or_array", custom_error_message="Input should be a string or an array"
)
STRING_OR_OBJECT = Discriminator(
    get_json_type, custom_error_type="string_or_object", custom_error_message="Input should be a string or an object"
)


def parse_json(body: bytes | bytearray, data_urls: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """Parse a body into a JSON object. Slow for large bodies: call it in a thread.

    The parser reads all bytes in one call, which holds the interpreter. So data URLs are decoded apart from the rest.

    Args:
        body: The body, whose bounds have been checked.
        data_urls: Start and end of its long data URLs.

    Returns:
        The object.

    Raises:
        BadRequest: The body is not JSON, not UTF-8, too deeply nested, or not an object. An integer has more than 64
            bits.
    """
    # No string of the client's begins with it. The system's random numbers cost more than time: the thread releases the
    # interpreter and takes it back at once. An event loop that waits for it would starve while lines are parsed.
    name = uuid4().hex if data_urls else ""
    try:
        texts = {f"{name}{start}": decode_string(body, start, end) for start, end in data_urls}
        data = from_json(replace_spans(body, data_urls, name) if data_urls else body)
    except ValueError:
        raise BadRequest(INVALID_JSON) from None
    if not isinstance(data, dict):
        raise BadRequest("The body must be a JSON object.")
    check_integers(data)
    if texts:
        insert_texts(data, name, texts)
    return data


def check_integers(data: Any) -> None:
    """Refuse integers beyond 64 bits in a parsed document, because a response may repeat any of its values.

    Args:
        data: The document.

    Raises:
        BadRequest: An integer is too large.
    """
    containers: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    while containers:
        path, container = containers.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, dict | list):
                containers.append(((*path, key), value))
            elif isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
                field = join_path((*path, key))
                raise BadRequest(f"{field}: Input should be an integer of at most 64 bits.", param=field)


def decode_string(body: bytes | bytearray, start: int, end: int) -> str:
    """Decode the inside of a JSON string of ASCII in slices, none of which holds the interpreter for long.

    Args:
        body: The document.
        start: Start of the string, after its quote.
        end: End of the string, before its quote.

    Returns:
        The text.

    Raises:
        ValueError: The string is not valid.
    """
    parts: list[str] = []
    while start < end:
        piece = bytes(body[start : min(start + STRING_SLICE, end)])
        if b"\\" in piece and start + len(piece) < end:
            match = WHOLE_CHARACTERS.match(piece)
            piece = piece[: match.end()] if match else b""
        if not piece:
            raise ValueError("an escape is not valid")
        parts.append(from_json(b'"%b"' % piece))
        start += len(piece)
    return "".join(parts)


def replace_spans(body: bytes | bytearray, spans: Sequence[tuple[int, int]], name: str) -> bytes:
    """Replace each span by `name` and its start."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [body[position:start], f"{name}{start}".encode()]
        position = end
    return b"".join([*pieces, body[position:]])


def insert_texts(data: Any, name: str, texts: Mapping[str, str]) -> None:
    """Replace the strings that begin with `name` in a parsed document by their texts."""
    containers: list[Any] = [data]
    while containers:
        container = containers.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str):
                if value.startswith(name):
                    container[key] = texts[value]
            elif isinstance(value, dict | list):
                containers.append(value)


def validate(model: type[Model], data: Any) -> Model:
    """Validate parsed JSON against a request model.

    Returns:
        The request.

    Raises:
        BadRequest: The first validation error, with the path of its field as `param`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = format_error_path(first, data)
        raise BadRequest(format_error_message(first, path), param=path or None) from None


def format_error_path(error: ErrorDetails, data: Any) -> str:
    """Format the location of an error as the client would write it.

    Pydantic's location also has the names of union members. They are not fields, so the path omits them.

    Returns:
        The path, for example `messages[0].content[1].text`.
    """
    steps, field_is_absent = error["loc"], error["type"] in ("missing", "extra_forbidden")
    fields: list[str | int] = []
    union_member: Any = None  # the object whose tag the loop has passed
    for count, step in enumerate(steps[:-1] if field_is_absent else steps, 1):
        if count < len(steps) and data is not union_member and is_union_tag(data, step, steps[count]):
            union_member = data
            continue
        with suppress(KeyError, IndexError, TypeError):
            data = data[step]
            fields.append(step)
    if field_is_absent:
        fields.append(steps[-1])
    if error["type"].startswith("union_tag"):
        fields.append(error["ctx"]["discriminator"].strip("'"))
    return join_path(fields)


def is_union_tag(data: Any, step: str | int, next_step: str | int) -> bool:
    """Return whether `step` is the tag that selects a union's member; another field can have that name too."""
    if not isinstance(data, dict) or step not in (data.get("type"), data.get("role")):
        return False
    return step not in data or next_step in data


def join_path(fields: Sequence[str | int]) -> str:
    text = "".join(f"[{field}]" if isinstance(field, int) else f".{field[:MAX_SHOWN_NAME]}" for field in fields)
    return text.removeprefix(".")


def format_error_message(error: ErrorDetails, path: str) -> str:
    match error["type"]:
        case "extra_forbidden":
            return f"Unknown field '{path}'."
        case "missing" | "union_tag_not_found":
            return f"Missing field '{path}'."
        case "union_tag_invalid":
            return f"{path}: expected one of {error['ctx']['expected_tags']}."
        case "model_type" | "model_attributes_type":
            return f"{path}: Input should be an object.".removeprefix(": ")
        case _:
            return f"{path}: {error['msg']}.".removeprefix(": ")
