"""The field `decoding`: which strategies, with which parameters, and what to tell of them."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from server.wire import Wire


class Decoding(Wire):
    """How this answer is decoded: `{"strategy": "agla+vhr", "agla": {"alpha": 2.0}}`."""

    model_config = ConfigDict(extra="allow")

    strategy: str | None = Field(default=None, max_length=256, description="Names joined by '+', the outermost first.")
    grounding: bool | None = Field(
        default=None,
        description="Adds to each entry of logprobs.content: log p(token | image) - log p(token | no image). "
        "Switches logprobs on.",
    )
    trace: bool | None = Field(
        default=None,
        description="Adds to each entry of logprobs.content whether the strategy `changed` the likeliest token, and to "
        "the receipt the pictures that its branches saw. Switches logprobs on.",
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """Strategy name -> its parameters, not yet checked."""
        return self.model_extra or {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The registered strategies' parameters are fields like the others."""
        from decoding import registry

        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        known = registry.strategies()
        schema["additionalProperties"] = False
        for name, strategy in known.items():
            schema["properties"][name] = handler(strategy.__pydantic_core_schema__)
        names = "|".join(known)
        schema["properties"]["strategy"]["anyOf"][0]["pattern"] = rf"^({names})(\+({names}))*$"
        return reference
