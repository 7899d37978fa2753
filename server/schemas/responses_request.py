"""The body of POST /v1/responses. The server stores nothing, so each request contains its whole conversation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from decoding.errors import BadRequest
from server.media.image_ref import ImageRef
from server.schemas.base import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOKEN_BOUND,
    STRING_OR_ARRAY,
    Metadata,
    StrictModel,
    validate,
)
from server.schemas.field_policy import (
    IGNORED,
    NO_PLATFORM,
    NO_REASONING,
    NO_STORE,
    NO_TOOLS,
    ONLY_CHAT,
    VLLM_UNSUPPORTED,
    EngineFields,
    Ignored,
    IgnoredObject,
    PlatformFields,
    list_ignored,
    reject_unsupported,
)
from server.schemas.json_bounds import MAX_ELEMENTS
from server.schemas.normalized_request import (
    SEED_LIMIT,
    Decoding,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    NormalizedRequest,
    OutputFormat,
    ResponseFormat,
    TextFormat,
    UnloadedMessage,
    build_sampling_params,
    to_output_format,
)
from server.schemas.tool_calls import FlatChoice, FlatTools, ForcedCall, resolve_forced_call

UNSUPPORTED: Mapping[str, str] = {
    **VLLM_UNSUPPORTED,
    **dict.fromkeys(
        (
            "frequency_penalty",
            "ignore_eos",
            "logit_bias",
            "presence_penalty",
            "repetition_penalty",
            "stop",
            "stop_token_ids",
            "structured_outputs",
        ),
        ONLY_CHAT,
    ),
    "access_programs": NO_PLATFORM,
    "background": NO_STORE,
    "background_options": NO_STORE,
    "context_management": "the server uses the whole conversation",
    "conversation": NO_STORE,
    "enable_response_messages": "the response does not repeat the prompt",
    "image": "answers are text",
    "input_transformations": NO_PLATFORM,
    "moderation": NO_PLATFORM,
    "previous_input_messages": f"{NO_STORE}; send the whole conversation",
    "previous_response_id": f"{NO_STORE}; send the whole conversation",
    "prompt": NO_PLATFORM,
    "reasoning": NO_REASONING,
    "truncation": "the server refuses a prompt that is too long",
}
LOGPROBS = "message.output_text.logprobs"
# Contents of output items that no answer of this server has, and a repetition of the images of the input.
NOTHING_TO_INCLUDE = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]


class InputText(StrictModel):
    """A text in a message."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Annotated[IgnoredObject | None, IGNORED] = Ignored


class InputImage(StrictModel):
    """An image in a message."""

    type: Literal["input_image"]
    image_url: str = Field(description="A data URL, or http(s) at an allowed host.")
    detail: Annotated[Literal["auto", "low", "high", "original"] | None, IGNORED] = Field(
        default=None, description="Ignored: the model sees each image at its own input resolution."
    )
    prompt_cache_breakpoint: Annotated[IgnoredObject | None, IGNORED] = Ignored


class OutputText(StrictModel):
    """A part of an earlier answer, as the server sent it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=MAX_PARTS)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=MAX_ELEMENTS)] | None = None


ResponsesPart = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]
ResponsesParts = Annotated[list[ResponsesPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class InputMessage(StrictModel):
    """A message of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Annotated[str, Tag("string")] | Annotated[ResponsesParts, Tag("array")], STRING_OR_ARRAY]
    id: str | None = Field(default=None, max_length=512)
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


InputMessages = Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class FlatSchemaFormat(JsonSchema):
    """JSON that matches a schema, whose fields are not nested as in chat completions."""

    type: Literal["json_schema"]


class TextConfig(StrictModel):
    """The options of the answer's text."""

    format: Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class ResponsesStreamOptions(StrictModel):
    """The options of a stream."""

    include_obfuscation: Annotated[bool | None, IGNORED] = Ignored


class ResponsesRequest(EngineFields, PlatformFields):
    """OpenAI's request for a response, with some of vLLM's sampling fields and `decoding`."""

    model: str = Field(
        max_length=512,
        description="A name from /v1/models. A suffix selects the strategy: name:agla or name:agla:alpha=1",
    )
    input: Annotated[Annotated[str, Tag("string")] | Annotated[InputMessages, Tag("array")], STRING_OR_ARRAY] = Field(
        description="The last message is the user's."
    )
    instructions: str | None = Field(default=None, description="A system message before the input.")
    decoding: Decoding | None = None
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKEN_BOUND, description="Default: the rest of the context."
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1. 0 takes the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Default 1. 0 takes the likeliest token.")
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="Default 0. 0 and -1: off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Default 0.")
    seed: int | None = Field(default=None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    text: TextConfig | None = Field(default=None, description="The format of the answer.")
    tools: FlatTools | None = Field(default=None, description="The prompt does not have them.")
    tool_choice: FlatChoice | None = Field(
        default=None,
        description="A function or `required`: the answer is one call. `none`: it is text. With tools, the default "
        "`auto` is refused, because the served models do not decide whether to call a tool.",
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Without effect: an answer is at most one call.")
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs"] | NOTHING_TO_INCLUDE], Field(max_length=16, fail_fast=True)
        ]
        | None
    ) = Field(default=None, description=f"{LOGPROBS}. The others have no effect, and the receipt lists them.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description=f"Needs {LOGPROBS} in include.")
    max_tool_calls: Annotated[int | None, IGNORED] = Ignored
    metadata: Metadata | None = Field(default=None, description="Repeated in the response.")
    stream: bool | None = Field(default=None, description="Default false. OpenAI's events, as server-sent events.")
    stream_options: ResponsesStreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Written to the log.")

    @model_validator(mode="after")
    def _check_consistency(self) -> ResponsesRequest:
        if not isinstance(self.input, str):
            if self.input[-1].role != "user":
                raise BadRequest("The last message must be the user's.", param="input")
            for index, message in enumerate(self.input):
                for position, part in enumerate(message.content if isinstance(message.content, list) else ()):
                    if message.role != "user" and isinstance(part, InputImage):
                        param = f"input[{index}].content[{position}]"
                        raise BadRequest("Only a user's message may contain images.", param=param)
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise BadRequest(f"top_logprobs needs {LOGPROBS} in include.", param="top_logprobs")
        if self.forced_call is not None:
            self._check_forced_call()
        return self

    def _check_forced_call(self) -> None:
        """Raise `BadRequest` for a field that needs an answer of text."""
        if self._nest_format() is not None and not isinstance(self._nest_format(), TextFormat):
            raise BadRequest("A tool call has the format of its arguments.", param="text.format")
        if self.decoding is not None and self.decoding.wants_check:
            raise BadRequest("A tool call has no claims to check.", param="decoding.check")
        if self.wants_logprobs:
            grounds = self.decoding is not None and self.decoding.grounding
            param = "include" if LOGPROBS in (self.include or ()) else f"decoding.{'grounding' if grounds else 'trace'}"
            raise BadRequest("A tool call of a response has no log-probabilities.", param=param)

    @cached_property
    def forced_call(self) -> ForcedCall | None:
        """The call that the answer must be; None if it is text."""
        return resolve_forced_call(self.tools or (), self.tool_choice)

    @property
    def wants_logprobs(self) -> bool:
        needed = self.decoding is not None and bool(self.decoding.grounding or self.decoding.trace)
        return needed or LOGPROBS in (self.include or ())

    def _list_ignored(self) -> dict[str, str]:
        """List the ignored fields, with each value of `include` that has no effect."""
        values = {f"include[{value}]": "include" for value in self.include or () if value != LOGPROBS}
        if self.tools and self.forced_call is None:
            values["tools"] = "tools"
        return {**list_ignored(self), **values}

    def normalize(self) -> NormalizedRequest:
        return NormalizedRequest(
            self.model,
            "input",
            build_sampling_params(
                {name: getattr(self, name) for name in ("temperature", "top_p", "min_p")},
                max_tokens=self.max_output_tokens,
                top_k=max(self.top_k or 0, 0),
                seed=None if self.seed is None else self.seed % SEED_LIMIT,
                top_logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
            ),
            messages=self._list_messages(),
            decoding=self.decoding or Decoding(),
            output_format=OutputFormat(self.forced_call.build_schema(), "tools", "tools")
            if self.forced_call
            else to_output_format(self._nest_format(), "text.format", "text.format.schema"),
            max_tokens_param="max_output_tokens",
            user=self.user,
            ignored=self._list_ignored(),
        )

    def _list_messages(self) -> tuple[UnloadedMessage, ...]:
        system = () if self.instructions is None else (UnloadedMessage("system", (self.instructions,)),)
        if isinstance(self.input, str):
            return (*system, UnloadedMessage("user", (self.input,)))
        return (
            *system,
            *(to_unloaded_message(message, f"input[{index}].content") for index, message in enumerate(self.input)),
        )

    def _nest_format(self) -> ResponseFormat | None:
        """Nest the format as chat completions do."""
        flat = self.text.format if self.text else None
        if not isinstance(flat, FlatSchemaFormat):
            return flat
        return JsonSchemaFormat(type="json_schema", json_schema=flat)


def reject_tool_history(items: Any) -> None:
    """Raise `BadRequest` for the first item that is a tool call or the result of one."""
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("type") in ("function_call", "function_call_output"):
            message = f"Earlier tool calls and their results are not supported: {NO_TOOLS}."
            raise BadRequest(message, param=f"input[{index}].type", code="unsupported_parameter")


def reject_other_tools(tools: Any, choice: Any) -> None:
    """Raise `BadRequest` for the first tool that is no function of the client, and for the choice of one."""
    found = {f"tools[{index}]": tool for index, tool in enumerate(tools if isinstance(tools, list) else ())}
    for path, tool in {**found, "tool_choice": choice}.items():
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            message = "The only tools are functions of the client."
            raise BadRequest(message, param=f"{path}.type", code="unsupported_parameter")


def to_unloaded_message(message: InputMessage, path: str) -> UnloadedMessage:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return UnloadedMessage(role, (message.content,))
    parts = (
        ImageRef(part.image_url, f"{path}[{position}].image_url") if isinstance(part, InputImage) else part.text
        for position, part in enumerate(message.content)
    )
    return UnloadedMessage(role, tuple(parts))


def parse_responses_request(body: Mapping[str, Any]) -> ResponsesRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    reject_tool_history(body.get("input"))
    reject_other_tools(body.get("tools"), body.get("tool_choice"))
    return validate(ResponsesRequest, reject_unsupported(body, UNSUPPORTED))
