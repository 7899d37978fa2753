"""Strict reading: unknown fields are refused by name, and errors name the field as the client wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from openai.types.completion_usage import CompletionUsage
from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError
from pydantic_core import ErrorDetails, from_json

from decoding.answer import Usage
from decoding.errors import BadRequest

NAME_SHOWN = 64  # characters of an unknown field's name that the refusal repeats


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Read = TypeVar("Read", bound=Wire)


def shape(value: Any) -> str | None:
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else None


STRING_OR_ARRAY = Discriminator(
    shape, custom_error_type="string_or_array", custom_error_message="Input should be a string or an array"
)


def read_json(body: bytes) -> dict[str, Any]:
    """Raises: BadRequest: not JSON, too deeply nested, not UTF-8, or no object."""
    try:
        data = from_json(body)
    except ValueError:
        raise BadRequest("The body is not valid JSON in UTF-8.") from None
    if not isinstance(data, dict):
        raise BadRequest("The body must be a JSON object.")
    return data


def read(model: type[Read], data: Any) -> Read:
    """Raises: BadRequest: the first thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = path(first, data)
        raise BadRequest(told(first, where), param=where or None) from None


def path(error: ErrorDetails, data: Any) -> str:
    """`messages[0].content[1].text`. The names of union members in the location are no fields, and are left out."""
    steps, at_last = error["loc"], error["type"] in ("missing", "extra_forbidden")
    fields: list[str | int] = []
    member: Any = None  # the object whose tag has been passed
    for place, step in enumerate(steps[:-1] if at_last else steps, 1):
        if tags(data, step) and data is not member and place < len(steps):
            member = data
            continue
        with suppress(KeyError, IndexError, TypeError):
            data = data[step]
            fields.append(step)
    if at_last:
        fields.append(steps[-1])
    if error["type"].startswith("union_tag"):
        fields.append(error["ctx"]["discriminator"].strip("'"))
    return dotted(fields)


def tags(data: Any, step: str | int) -> bool:
    """Whether a union tells its members by this value of theirs, which may be the name of another field."""
    return isinstance(data, dict) and step in (data.get("type"), data.get("role"))


def dotted(fields: Sequence[str | int]) -> str:
    text = "".join(f"[{field}]" if isinstance(field, int) else f".{field[:NAME_SHOWN]}" for field in fields)
    return text.removeprefix(".")


def told(error: ErrorDetails, where: str) -> str:
    match error["type"]:
        case "extra_forbidden":
            return f"Unknown field '{where}'."
        case "missing" | "union_tag_not_found":
            return f"Missing field '{where}'."
        case "union_tag_invalid":
            return f"{where}: expected one of {error['ctx']['expected_tags']}."
        case "model_type" | "model_attributes_type":
            return f"{where}: Input should be an object.".removeprefix(": ")
        case _:
            return f"{where}: {error['msg']}.".removeprefix(": ")


def counted(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def to_json(document: BaseModel) -> str:
    """Only what was set, nulls that were set included."""
    return document.model_dump_json(exclude_unset=True)
