"""What an answer shall look like, as OpenAI's `response_format` says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio
from anyio.to_thread import run_sync
from pydantic import Field

from decoding.engine import Engine
from decoding.errors import BadRequest, Unsupported
from server.wire import Wire

SECONDS = 4.0  # in which a schema must be understood
PARAM = "response_format"


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Wire):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=4096, description="A hint without effect.")
    schema_: dict[str, Any] = Field(alias="schema", description="Enforced token by token; what cannot be is refused.")
    strict: bool | None = Field(default=None, description="Without effect: schemas are always enforced.")


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


async def grammar(wanted: ResponseFormat | None, engine: Engine, param: str = PARAM) -> str | None:
    """`Sampling.grammar`; None for free text.

    Raises:
        BadRequest: the schema is none, or cannot be enforced.
        Unsupported: the engine holds no answer to a grammar.
    """
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if "grammar" not in engine.capabilities:
        raise Unsupported("This engine cannot hold an answer to a schema.", param=param)
    if isinstance(wanted, JsonObjectFormat):
        return await understood({"type": "object"}, param)
    inside = "json_schema.schema" if param == PARAM else "schema"  # /v1/responses has it flat
    return await understood(wanted.json_schema.schema_, f"{param}.{inside}")


async def understood(schema: dict[str, Any], param: str) -> str:
    from decoding.grammar import grammar_of

    with anyio.move_on_after(SECONDS):
        return await run_sync(grammar_of, schema, param, abandon_on_cancel=True)
    raise BadRequest("The schema takes too long to understand.", param=param, code="invalid_schema")
