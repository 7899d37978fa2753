"""The body of POST /v1/chat/completions. A field that is null, or is left out, has its default."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from decoding.errors import BadRequest
from decoding.sampling import Sampling
from server.messages import AnyMessage
from server.response_format import ResponseFormat, TextFormat
from server.unsupported import supported
from server.wire import STRING_OR_ARRAY, Wire, read, read_json

DEFAULTS = Sampling(temperature=1.0)  # OpenAI's; 0 is greedy
SEEDS = 1 << 63
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
StopStrings = Annotated[list[StopString], Field(max_length=4)]
Stop = Annotated[Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("array")], STRING_OR_ARRAY]


class StreamOptions(Wire):
    include_usage: bool | None = Field(default=None, description="A last chunk without choices carries the usage.")


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


class ChatRequest(Wire):
    """OpenAI's chat completion request, with vLLM's extra sampling fields and `decoding`."""

    model: str = Field(max_length=512, description="As /v1/models lists it; a suffix chooses the strategy: name:agla")
    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=1024)] = Field(
        description="Ends with the user's."
    )
    decoding: Decoding | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Default: as many as the context holds.")
    max_tokens: int | None = Field(default=None, ge=1, description="The older name of max_completion_tokens.")
    min_tokens: int | None = Field(default=None, ge=0, le=100_000, description="Default 0. No end before that many.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1. 0 takes the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Default 1.")
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="Default 0. 0 and -1: off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Default 0.")
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, description="Default 1. Prompt included.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    seed: int | None = Field(default=None, ge=-SEEDS, lt=SEEDS, description="Choice i is drawn with seed + i.")
    stop: (
        Annotated[Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("array")], STRING_OR_ARRAY] | None
    ) = Field(default=None, description="Up to 4 strings; the answer ends before the first.")
    ignore_eos: bool | None = Field(default=None, description="Default false. Go on to max_tokens.")
    n: int | None = Field(default=None, ge=1, le=8, description="Default 1. Answers to the same question.")
    response_format: ResponseFormat | None = Field(default=None, description="Default: free text.")
    logprobs: bool | None = Field(default=None, description="Default: whether decoding.grounding or trace is true.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Needs logprobs.")
    stream: bool | None = Field(
        default=None, description="Default false. Server-sent events; `data: [DONE]` is the last."
    )
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Written to the log.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ChatRequest:
        most = self.max_completion_tokens or self.max_tokens
        if self.messages[-1].role != "user":
            raise BadRequest("The last message must be the user's.", param="messages")
        if self.max_tokens and self.max_tokens != most:
            raise BadRequest("max_tokens says something else than max_completion_tokens.", param="max_tokens")
        if most and self.min_tokens and self.min_tokens > most:
            raise BadRequest("min_tokens is larger than max_tokens.", param="min_tokens")
        if self.is_structured and (self.min_tokens or self.ignore_eos):
            raise BadRequest("An answer that has a format ends when it is complete.", param="response_format")
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.logprobs is False and (self.wants_grounding or self.wants_trace):
            asked = "grounding" if self.wants_grounding else "trace"
            raise BadRequest(f"decoding.{asked} is told in logprobs, which are switched off.", param="logprobs")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream to be true.", param="stream_options")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def is_structured(self) -> bool:
        return self.response_format is not None and not isinstance(self.response_format, TextFormat)

    @property
    def wants_grounding(self) -> bool:
        return self.decoding is not None and bool(self.decoding.grounding)

    @property
    def wants_trace(self) -> bool:
        return self.decoding is not None and bool(self.decoding.trace)

    @property
    def wants_logprobs(self) -> bool:
        return self.wants_grounding or self.wants_trace if self.logprobs is None else self.logprobs

    @property
    def wants_usage(self) -> bool:
        """Of a streamed answer; a whole one always has it."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, context: int) -> Sampling:
        """`context` bounds what a client may ask for."""
        said = {name: value for name in TAKEN_OVER if (value := getattr(self, name)) is not None}
        most = self.max_completion_tokens or self.max_tokens
        return replace(
            DEFAULTS,
            **said,
            max_tokens=None if most is None else min(most, context),
            top_k=max(self.top_k or 0, 0),
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            top_logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
        )


TAKEN_OVER = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)


def parse(body: bytes) -> ChatRequest:
    """Raises: BadRequest: the first thing that is wrong with it."""
    return read(ChatRequest, supported(read_json(body)))
