"""vLLM's structural tags: free text in which tags with JSON may stand."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from decoding.errors import BadRequest
from decoding.sampling_params import Grammar
from decoding.text.grammar import MAX_CHARACTERS, Tag, build_tag_grammar
from server.schemas.base import StrictModel, check_integers, validate

MAX_TAGS = 64
TagText = Annotated[str, Field(min_length=1, max_length=512)]


class StructuralTag(StrictModel):
    """A tag: its beginning, JSON of a schema, and its end."""

    begin: TagText = Field(description="It begins with a trigger.")
    schema_: dict[str, Any] = Field(
        default_factory=dict, alias="schema", description="A JSON Schema. Default: any JSON."
    )
    end: str = Field(max_length=512)


class StructuralTagFormat(StrictModel):
    """Text in which each trigger begins a tag."""

    type: Literal["structural_tag"]
    structures: Annotated[list[StructuralTag], Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)]
    triggers: Annotated[list[TagText], Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)] = Field(
        description="A trigger is followed by the rest of a tag that begins with it. Other text is free."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_nested_formats(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("format") is not None:
            message = "'format' is not supported: send structures and triggers."
            raise BadRequest(message, param="response_format.format", code="unsupported_parameter")
        return data

    def build_grammar(self, param: str) -> Grammar:
        """Build the grammar of the answer. `InvalidSchema` is raised for tags that cannot be enforced."""
        tags = [Tag(tag.begin, tag.schema_, tag.end) for tag in self.structures]
        return build_tag_grammar(tags, self.triggers, param)


def parse_structural_tag(text: str, param: str) -> StructuralTagFormat:
    """Parse the JSON text that vLLM's `structured_outputs.structural_tag` has.

    Args:
        text: The JSON of a `StructuralTagFormat`.
        param: Request field that an error names.

    Returns:
        The format.

    Raises:
        BadRequest: The text is no JSON, or has no such format.
    """
    try:
        data = json.loads(text)
        check_integers(data if isinstance(data, dict | list) else [])
        return validate(StructuralTagFormat, data)
    except (ValueError, RecursionError):
        raise BadRequest(f"{param} is not valid JSON.", param=param) from None
    except BadRequest as error:
        raise BadRequest(f"{param}: {error.message}", param=param, code=error.code) from None


StructuralTagText = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
