"""Forced tool calls: `tools` and `tool_choice` become a JSON schema, and the answer that matches it becomes a call.

The prompt does not have the tools. The schema forces the name and the members of the arguments, and the model fills in
the values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field, Tag

from decoding.errors import BadRequest
from server.schemas.base import STRING_OR_OBJECT, StrictModel
from server.schemas.field_policy import IGNORED, Ignored, IgnoredObject

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
# Keywords whose values are data, in which "$ref" is no reference.
DATA_KEYWORDS = ("const", "default", "enum", "example", "examples")
# Keywords whose schemas name members that a bound on additional ones would exclude.
COMBINING_KEYWORDS = ("$ref", "allOf", "anyOf", "oneOf")


class FunctionDefinition(StrictModel):
    """A function that the client can call."""

    name: FunctionName
    description: Annotated[str | None, IGNORED] = Field(
        default=None, max_length=16_384, description="Ignored: the prompt does not have the tools."
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="JSON Schema of the arguments, an object. Enforced token by token. Default: no arguments. Without "
        "additionalProperties, $ref, allOf, anyOf and oneOf it allows no others.",
    )
    strict: bool | None = Field(default=None, description="Without effect: the server always enforces schemas.")


class FunctionTool(StrictModel):
    """A tool of the client."""

    type: Literal["function"]
    function: FunctionDefinition
    cache_control: Annotated[IgnoredObject | None, IGNORED] = Ignored


class FlatFunctionTool(FunctionDefinition):
    """A tool of the client, whose fields are not nested as in chat completions."""

    type: Literal["function"]


class NamedFunction(StrictModel):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(StrictModel):
    """The function that the answer calls."""

    type: Literal["function"]
    function: NamedFunction


class FlatToolChoice(NamedFunction):
    """The function that the answer calls, whose name is not nested as in chat completions."""

    type: Literal["function"]


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("string")] | Annotated[NamedToolChoice, Tag("object")],
    STRING_OR_OBJECT,
]

FlatTools = Annotated[list[FlatFunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
FlatChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("string")] | Annotated[FlatToolChoice, Tag("object")],
    STRING_OR_OBJECT,
]


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """The call that an answer must be.

    Attributes:
        functions: The functions to choose from.
        is_named: Whether the request names the function.
    """

    functions: tuple[FunctionDefinition, ...]
    is_named: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions."""
        return tuple(function.name for function in self.functions)

    def build_schema(self) -> dict[str, Any]:
        """Build the schema of the answer: the arguments, or an object with a name and arguments."""
        schemas = [build_arguments_schema(function) for function in self.functions]
        if len(schemas) == 1:
            return schemas[0]
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{number}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, name in enumerate(self.names)
        ]
        definitions = {
            str(number): move_references(schema, f"#/$defs/{number}") for number, schema in enumerate(schemas)
        }
        return {"anyOf": calls, "$defs": definitions}


def resolve_forced_call(
    functions: Sequence[FunctionDefinition], choice: str | NamedFunction | None, nesting: str = ""
) -> ForcedCall | None:
    """Find the call that a request forces.

    Args:
        functions: The functions of its tools.
        choice: Its `tool_choice`.
        nesting: Path from a tool or a choice to its function, for errors.

    Returns:
        The call. None if the request has no tools, or if none may be called.

    Raises:
        BadRequest: The model would have to decide whether it calls a tool, or there is no such tool.
    """
    for index, function in enumerate(functions):
        path = f"tools[{index}]{nesting}"
        check_parameters(function, path)
        if function.name in [other.name for other in functions[:index]]:
            raise BadRequest("Two tools have the same name.", param=f"{path}.name")
    if isinstance(choice, NamedFunction):
        named = tuple(function for function in functions if function.name == choice.name)
        if not named:
            raise BadRequest(f"tools has no function '{choice.name}'.", param=f"tool_choice{nesting}.name")
        return ForcedCall(named, is_named=True)
    if choice == "required":
        if not functions:
            raise BadRequest("tool_choice 'required' needs tools.", param="tool_choice")
        return ForcedCall(tuple(functions), is_named=False)
    if functions and choice != "none":
        message = (
            "tool_choice 'auto' is not supported: the served models do not decide whether to call a tool. Send "
            "'required', a function or 'none'."
        )
        raise BadRequest(message, param="tool_choice", code="unsupported_parameter")
    return None


def check_parameters(function: FunctionDefinition, path: str) -> None:
    """Raise `BadRequest` if the arguments of a function need not be an object."""
    if function.parameters and function.parameters.get("type", "object") != "object":
        raise BadRequest("The parameters of a function must be an object.", param=f"{path}.parameters.type")


def build_arguments_schema(function: FunctionDefinition) -> dict[str, Any]:
    """Build the schema of the arguments. A small model that may add members of any name adds them without end."""
    parameters = function.parameters or {}
    bound = {} if any(keyword in parameters for keyword in COMBINING_KEYWORDS) else {"additionalProperties": False}
    return {**bound, **parameters, "type": "object"}


def move_references(schema: Any, place: str) -> Any:
    """Rewrite the references of a schema that becomes a part of another one.

    Args:
        schema: The schema, whose depth the server has bounded.
        place: Reference to the place of its root in the other schema.

    Returns:
        A copy whose references to its own root begin at that place.
    """
    if isinstance(schema, list):
        return [move_references(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in DATA_KEYWORDS and not isinstance(value, dict)
        else move_references(value, place)
        for key, value in schema.items()
    }


@dataclass(slots=True)
class ToolCallParser:
    """Splits the text of one choice into the name and the arguments of its call, piece by piece.

    Attributes:
        name: The name of the function; None while it is not known.
        id: The id of the call.
        has_started: Whether a stream has sent the name and the id.
    """

    names: tuple[str, ...]
    name: str | None = None
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}")
    has_started: bool = False
    _held: str = ""  # text before the arguments, or the brace that may close the object around them
    _arguments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.names) == 1:
            self.name = self.names[0]

    @property
    def is_wrapped(self) -> bool:
        """Whether the arguments are a member of an object."""
        return len(self.names) > 1

    @property
    def arguments(self) -> str:
        """The arguments so far."""
        return "".join(self._arguments)

    def add(self, text: str) -> str:
        """Add a piece of text, and return the arguments that are now certain."""
        if not self.is_wrapped:
            return self._add_arguments(text)
        self._held += text
        if self.name is None and not self._find_name():
            return ""
        certain, self._held = self._held[:-1], self._held[-1:]
        return self._add_arguments(certain)

    def finish(self) -> str:
        """End the answer, and return the rest of its arguments. The answer may be cut off."""
        rest, self._held = self._held, ""
        if not self.is_wrapped or self.name is None or is_json(self.arguments):
            return ""
        return self._add_arguments(rest)

    def _find_name(self) -> bool:
        for name in self.names:
            start = f'{{"name": {json.dumps(name)}, "arguments": '
            if self._held.startswith(start):
                self.name, self._held = name, self._held[len(start) :]
                return True
        return False

    def _add_arguments(self, text: str) -> str:
        if text:
            self._arguments.append(text)
        return text


def is_json(text: str) -> bool:
    """Return whether a text is a complete JSON document."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
