"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from decoding.errors import BadRequest
from server.media.image_ref import ImageRef
from server.schemas.base import MAX_MESSAGES, MAX_PARTS, MAX_TOKEN_BOUND, STRING_OR_ARRAY, StrictModel, validate
from server.schemas.field_policy import (
    IGNORED,
    NO_AUDIO,
    NO_PLATFORM,
    NO_REASONING,
    NO_TOOLS,
    VLLM_UNSUPPORTED,
    Ignored,
    IgnoredObject,
    PlatformFields,
    ShortText,
    list_ignored,
    reject_unsupported,
)
from server.schemas.normalized_request import (
    Decoding,
    NormalizedRequest,
    OutputFormat,
    ResponseFormat,
    SamplingFields,
    TextFormat,
    UnloadedMessage,
    to_output_format,
)
from server.schemas.tool_calls import ForcedCall, NamedToolChoice, ToolChoice, Tools, resolve_forced_call

UNSUPPORTED: Mapping[str, str] = {
    **VLLM_UNSUPPORTED,
    "audio": NO_AUDIO,
    "function_call": NO_TOOLS,
    "functions": NO_TOOLS,
    "modalities": NO_AUDIO,
    "moderation": NO_PLATFORM,
    "reasoning_effort": NO_REASONING,
    "verbosity": "state the length of the answer in the prompt",
    "web_search_options": NO_TOOLS,
}


class TextPart(StrictModel):
    """A text in a message."""

    type: Literal["text"]
    text: str
    cache_control: Annotated[IgnoredObject | None, IGNORED] = Ignored
    prompt_cache_breakpoint: Annotated[IgnoredObject | None, IGNORED] = Ignored


class ImageUrl(StrictModel):
    """The address of an image."""

    url: str = Field(
        description="data:image/png;base64,... (or jpeg, webp, gif), or http(s) at an allowed host. "
        "Up to 25 megapixels for all images together."
    )
    detail: Annotated[Literal["auto", "low", "high"] | None, IGNORED] = Field(
        default=None, description="Ignored: the model sees each image at its own input resolution."
    )


class ImagePart(StrictModel):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: Annotated[IgnoredObject | None, IGNORED] = Ignored
    prompt_cache_breakpoint: Annotated[IgnoredObject | None, IGNORED] = Ignored
    uuid: Annotated[ShortText | None, IGNORED] = Ignored


TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
ChatPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
ChatParts = Annotated[list[ChatPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
TextContent = Annotated[Annotated[str, Tag("string")] | Annotated[TextParts, Tag("array")], STRING_OR_ARRAY]
ChatContent = Annotated[Annotated[str, Tag("string")] | Annotated[ChatParts, Tag("array")], STRING_OR_ARRAY]


class SystemMessage(StrictModel):
    """An instruction to the model."""

    role: Literal["system", "developer"]
    content: TextContent
    name: Annotated[ShortText | None, IGNORED] = Ignored


class UserMessage(StrictModel):
    """A message of the user, with texts and images."""

    role: Literal["user"]
    content: ChatContent
    name: Annotated[ShortText | None, IGNORED] = Ignored


class AssistantMessage(StrictModel):
    """An earlier answer. The empty fields allow a client to send a response's message back unchanged."""

    role: Literal["assistant"]
    content: TextContent
    name: Annotated[ShortText | None, IGNORED] = Ignored
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
ChatMessages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ChatCompletionRequest(SamplingFields, PlatformFields):
    """OpenAI's chat completion request, with vLLM's extra sampling fields and `decoding`."""

    messages: ChatMessages = Field(
        description="The last message is the user's. With continue_final_message it is the beginning of the answer."
    )
    prediction: Annotated[dict[str, Any] | None, IGNORED] = Field(default=None, max_length=2, description="Ignored.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKEN_BOUND, description="Default: the rest of the context."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKEN_BOUND, description="The older name of max_completion_tokens."
    )
    response_format: ResponseFormat | None = Field(default=None, description="Default: free text.")
    tools: Tools | None = Field(default=None, description="The prompt does not have them.")
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="A function or `required`: the answer is one call. `none`: it is text. With tools, the default "
        "`auto` is refused, because the served models do not decide whether to call a tool.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="Default false. The answer continues the last message, which is the assistant's and follows one of "
        "the user's. The message belongs to the prompt: limits, stop strings and the usage do not count it as answer. "
        "Formats, penalties and strategies read it as the beginning of the answer.",
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="The opposite of continue_final_message, and its default."
    )
    echo: bool | None = Field(
        default=None, description="Default false. With continue_final_message, the answer begins with the last message."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Without effect: an answer is at most one call.")
    logprobs: bool | None = Field(default=None, description="Default: whether decoding.grounding or trace is true.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Needs logprobs.")

    @model_validator(mode="after")
    def _check_consistency(self) -> ChatCompletionRequest:
        self._check_messages()
        if self.max_tokens and self.max_tokens != self.max_new_tokens:
            raise BadRequest("max_tokens and max_completion_tokens differ.", param="max_tokens")
        if self.forced_call is not None:
            if self.is_structured or self.structured_outputs is not None:
                field = "response_format" if self.is_structured else "structured_outputs"
                raise BadRequest("A tool call has the format of its arguments.", param=field)
            if self.wants_check:
                raise BadRequest("A tool call has no claims to check.", param="decoding.check")
            if self.continue_final_message:
                raise BadRequest("A tool call cannot be continued.", param="continue_final_message")
        if self.is_structured and self.structured_outputs is not None:
            raise BadRequest("Send either response_format or structured_outputs.", param="structured_outputs")
        if (self.is_structured or self.forced_call) and (self.min_tokens or self.ignore_eos or self.stop_token_ids):
            param = "tools" if self.forced_call else "response_format"
            raise BadRequest("An answer with a format ends when it is complete.", param=param)
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.logprobs is False and (self.wants_grounding or self.wants_trace):
            field = "grounding" if self.wants_grounding else "trace"
            raise BadRequest(f"decoding.{field} needs logprobs, which the request turns off.", param="logprobs")
        self.check_shared_fields(self.max_new_tokens)
        return self

    def _check_messages(self) -> None:
        """Check the last messages, and the fields that decide whether the answer continues the last one.

        Raises:
            BadRequest: The last messages or the fields do not fit together.
        """
        roles = [message.role for message in self.messages[-2:]]
        if not self.continue_final_message:
            if roles[-1] != "user":
                hint = "The last message must be the user's. To continue an answer, send continue_final_message."
                raise BadRequest(hint, param="messages")
            if self.add_generation_prompt is False:
                message = "add_generation_prompt may be false with continue_final_message only."
                raise BadRequest(message, param="add_generation_prompt")
            return
        if self.add_generation_prompt:
            message = "Only one of continue_final_message and add_generation_prompt may be true."
            raise BadRequest(message, param="add_generation_prompt")
        if roles != ["user", "assistant"]:
            message = "continue_final_message needs a last message of the assistant, after one of the user."
            raise BadRequest(message, param="messages")
        if not self.continued_text:
            raise BadRequest("continue_final_message needs a last message with text.", param="messages")

    @cached_property
    def continued_text(self) -> str:
        """The text that the answer continues, or nothing."""
        last = self.messages[-1]
        if not self.continue_final_message or not isinstance(last, AssistantMessage):
            return ""
        return last.content if isinstance(last.content, str) else "".join(part.text for part in last.content)

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @cached_property
    def forced_call(self) -> ForcedCall | None:
        """The call that the answer must be; None if it is text."""
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedToolChoice) else self.tool_choice
        return resolve_forced_call([tool.function for tool in self.tools or ()], choice, ".function")

    @property
    def is_structured(self) -> bool:
        return self.response_format is not None and not isinstance(self.response_format, TextFormat)

    @property
    def wants_logprobs(self) -> bool:
        return self.wants_grounding or self.wants_trace if self.logprobs is None else self.logprobs

    def normalize(self) -> NormalizedRequest:
        return NormalizedRequest(
            self.model,
            "messages",
            self.to_sampling_params(self.max_new_tokens, (self.top_logprobs or 0) if self.wants_logprobs else None),
            messages=to_unloaded_messages(self.messages[:-1] if self.continue_final_message else self.messages),
            continued_text=self.continued_text,
            decoding=self.decoding or Decoding(),
            output_format=self._to_output_format(),
            max_tokens_param="max_tokens" if self.max_tokens else "max_completion_tokens",
            choices=self.n or 1,
            prompt_logprobs=self.prompt_logprobs,
            user=self.user,
            ignored=self._list_ignored(),
        )

    def _list_ignored(self) -> dict[str, str]:
        """List the ignored fields, with those that have no effect beside the others."""
        unused = {
            "tools": bool(self.tools) and self.forced_call is None,
            "echo": bool(self.echo) and not self.continued_text,
        }
        return {**list_ignored(self), **{name: name for name, is_unused in unused.items() if is_unused}}

    def _to_output_format(self) -> OutputFormat | None:
        if self.forced_call is not None:
            return OutputFormat(self.forced_call.build_schema(), "tools", "tools")
        if self.structured_outputs is not None:
            return self.structured_outputs.to_output_format()
        return to_output_format(self.response_format, "response_format", "response_format.json_schema.schema")


def parse_chat_request(body: Mapping[str, Any]) -> ChatCompletionRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    reject_tool_history(body.get("messages"))
    return validate(ChatCompletionRequest, reject_unsupported(body, UNSUPPORTED))


def reject_tool_history(messages: Any) -> None:
    """Raise `BadRequest` for the first message with a tool call or with the result of one."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        if message.get("role") in ("tool", "function"):
            param, subject = f"messages[{index}].role", "Results of tools are"
        elif message.get("tool_calls") or message.get("function_call"):
            field = "tool_calls" if message.get("tool_calls") else "function_call"
            param, subject = f"messages[{index}].{field}", "Earlier tool calls are"
        else:
            continue
        raise BadRequest(f"{subject} not supported: {NO_TOOLS}.", param=param, code="unsupported_parameter")


def to_unloaded_messages(messages: list[ChatMessage]) -> tuple[UnloadedMessage, ...]:
    return tuple(
        UnloadedMessage(
            "system" if isinstance(message, SystemMessage) else message.role,
            tuple(
                part.text
                if isinstance(part, TextPart)
                else ImageRef(part.image_url.url, f"messages[{index}].content[{position}].image_url.url")
                for position, part in enumerate(list_parts(message))
            ),
        )
        for index, message in enumerate(messages)
    )


def list_parts(message: ChatMessage) -> list[TextPart] | list[ChatPart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content
