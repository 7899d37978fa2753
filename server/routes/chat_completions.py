"""POST /v1/chat/completions: the route and its responses, which are the openai package's types with the receipt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import time
from typing import Any, Literal
from uuid import uuid4

import orjson
from fastapi import APIRouter, Request
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall, ChoiceDeltaToolCallFunction
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall, Function
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from decoding.outputs import FinishReason, Token
from server.errors import ErrorResponse
from server.schemas.chat_request import parse_chat_request
from server.schemas.prompt_logprobs import PromptLogprobList, PromptLogprobsField, dump_prompt_logprobs
from server.schemas.response import (
    DONE,
    ClaimsUpdate,
    LogprobEntry,
    LogprobFormatter,
    Receipt,
    build_event,
    build_openapi_responses,
    dump_json,
    join_entries,
    to_completion_usage,
    to_json_fields,
)
from server.schemas.tool_calls import ForcedCall, ToolCallParser
from server.serving.admission import AdmissionDep
from server.serving.generation import Generation
from server.serving.request_handler import ParsedRequest, respond

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChatLogprobs(chat_completion.ChoiceLogprobs):
    """The log-probabilities of a choice, with the scores of this server."""

    content: list[LogprobEntry] | None = None  # type: ignore[assignment]


class ChatChoice(chat_completion.Choice):
    """One answer to the conversation."""

    logprobs: ChatLogprobs | None = None


class ChatCompletionResponse(ChatCompletion):
    """OpenAI's chat completion with the receipt."""

    choices: list[ChatChoice]  # type: ignore[assignment]
    prompt_logprobs: PromptLogprobList | None = PromptLogprobsField
    onlyseen: Receipt


class ChatChunkLogprobs(chat_completion_chunk.ChoiceLogprobs):
    """The log-probabilities of a chunk, with the scores of this server."""

    content: list[LogprobEntry] | None = None  # type: ignore[assignment]


class ChatChunkChoice(chat_completion_chunk.Choice):
    """The part of one answer in a chunk."""

    logprobs: ChatChunkLogprobs | None = None


class ChatChunk(ChatCompletionChunk):
    """A chunk of a streamed answer. The last one has the receipt. With a check, others have claims."""

    choices: list[ChatChunkChoice]  # type: ignore[assignment]
    onlyseen: Receipt | ClaimsUpdate | None = None


router = APIRouter()


@router.post("/v1/chat/completions", responses=build_openapi_responses(ChatCompletionResponse), response_class=Response)
async def create_chat_completion(request: Request, admission: AdmissionDep) -> Response:
    """Answer a conversation with images. `decoding` selects the strategy; the receipt is in `onlyseen`."""
    return await respond(request, admission, parse_body)


def parse_body(body: dict[str, Any]) -> ParsedRequest:
    """Validate a body and build its formatter, or raise BadRequest for the first error."""
    chat = parse_chat_request(body)
    logprobs = LogprobFormatter(chat.wants_logprobs, grounding=chat.wants_grounding, trace=chat.wants_trace)
    formatter = ChatCompletionFormatter(
        chat.model,
        logprobs,
        chat.wants_stream_usage,
        chat.wants_continuous_usage,
        chat.forced_call,
        chat.continued_text if chat.echo else "",
        chat.prompt_logprobs,
    )
    return ParsedRequest(chat.normalize(), formatter, bool(chat.stream))


@dataclass(frozen=True, slots=True)
class ChatCompletionFormatter:
    """Writes the responses of `/v1/chat/completions`."""

    model: str
    logprobs: LogprobFormatter
    include_usage: bool
    continuous_usage: bool
    forced_call: ForcedCall | None = None
    echo: str = ""  # the beginning of each answer, which the request has sent
    prompt_logprobs: int | None = None  # likeliest tokens beside each token of the prompt
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))

    async def format_full(self, generation: Generation) -> bytes:
        texts: list[list[str]] = [[] for _ in range(generation.choices)]
        entries: list[list[bytes]] = [[] for _ in range(generation.choices)]
        async for choice, token in generation.stream_tokens():
            texts[choice].append(token.text)
            entries[choice] += self.logprobs.dump_token(token)
        choices = [
            self._build_choice(index, "".join([self.echo, *text]), generation.finish_infos[index].reason)
            for index, text in enumerate(texts)
        ]
        document = ChatCompletionResponse(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=to_completion_usage(generation.usage),
            onlyseen=generation.receipt,
        )
        fields = to_json_fields(document)
        if self.logprobs.enabled:
            for choice_fields, choice_entries in zip(fields["choices"], entries, strict=True):
                choice_fields["logprobs"]["content"] = join_entries(choice_entries)
        if self.prompt_logprobs is not None:
            dump = partial(dump_prompt_logprobs, count=self.prompt_logprobs)
            fields["prompt_logprobs"] = (await generation.format_prompts(dump))[0]
        return orjson.dumps(fields)

    async def stream_events(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        async for chunk in self._stream_chunks(generation):
            if self.include_usage:
                chunk.usage = to_completion_usage(generation.usage_so_far) if self.continuous_usage else None
            elif generation.is_finished and chunk.choices[0].finish_reason:
                chunk.onlyseen = generation.receipt
            yield build_event(dump_json(chunk))
        if self.include_usage:
            last = self._build_chunk()
            last.usage, last.onlyseen = to_completion_usage(generation.usage), generation.receipt
            yield build_event(dump_json(last))
        yield build_event(DONE)

    def format_error(self, error: ErrorResponse) -> ServerSentEvent:
        return build_event(error.to_json(), "error")

    async def _stream_chunks(self, generation: Generation) -> AsyncGenerator[ChatChunk, None]:
        started: set[int] = set()
        names = self.forced_call.names if self.forced_call else ()
        parsers = [ToolCallParser(names) for _ in range(generation.choices if names else 0)]
        async for choice, token in generation.stream_tokens():
            if choice not in started:
                started.add(choice)
                yield self._build_chunk(build_first_chunk_choice(choice, None if parsers else self.echo))
            entries = self.logprobs.format_token(token)
            if parsers:
                for part in self._build_call_choices(choice, token, entries, parsers[choice]):
                    yield self._build_chunk(part)
            elif token.text or entries:
                yield self._build_chunk(self._build_chunk_choice(choice, token, entries))
            if token.claims:
                chunk = self._build_chunk(build_empty_chunk_choice(choice))
                chunk.onlyseen = ClaimsUpdate(claims=generation.to_claim_entries(choice, token))
                yield chunk
            if token.finish is not None:
                reason = self._convert_finish_reason(token.finish.reason)
                yield self._build_chunk(build_empty_chunk_choice(choice, reason))

    def _build_choice(self, index: int, text: str, reason: FinishReason) -> ChatChoice:
        """Build a choice whose log-probabilities, if enabled, are empty."""
        return ChatChoice(
            index=index,
            message=self._build_message(text),
            logprobs=ChatLogprobs(content=[], refusal=None) if self.logprobs.enabled else None,
            finish_reason=self._convert_finish_reason(reason),
        )

    def _build_message(self, text: str) -> ChatCompletionMessage:
        if self.forced_call is None:
            return ChatCompletionMessage(role="assistant", content=text, refusal=None)
        parser = ToolCallParser(self.forced_call.names)
        parser.add(text)
        parser.finish()
        if parser.name is None:  # the answer is cut off before it names a function
            return ChatCompletionMessage(role="assistant", content=None, refusal=None)
        call = ChatCompletionMessageFunctionToolCall(
            id=parser.id, type="function", function=Function(name=parser.name, arguments=parser.arguments)
        )
        return ChatCompletionMessage(role="assistant", content=None, refusal=None, tool_calls=[call])

    def _convert_finish_reason(self, reason: FinishReason) -> ChatFinishReason:
        """Return OpenAI's finish reason: a call that the request names ends with `stop`, another with `tool_calls`."""
        is_call = self.forced_call is not None and not self.forced_call.is_named
        return "tool_calls" if is_call and reason == "stop" else reason

    def _build_call_choices(
        self, index: int, token: Token, entries: list[LogprobEntry], parser: ToolCallParser
    ) -> Iterator[ChatChunkChoice]:
        """Yield the parts of a tool call that a token adds: at most its beginning, and a piece of its arguments."""
        was_named = parser.has_started
        arguments = parser.add(token.text) + (parser.finish() if token.finish else "")
        logprobs = ChatChunkLogprobs(content=entries, refusal=None) if self.logprobs.enabled else None
        calls: list[ChoiceDeltaToolCall] = []
        if parser.name is not None and not was_named:
            parser.has_started = True
            function = ChoiceDeltaToolCallFunction(name=parser.name, arguments="")
            calls.append(ChoiceDeltaToolCall(index=0, id=parser.id, type="function", function=function))
        if arguments:
            function = ChoiceDeltaToolCallFunction(arguments=arguments)
            calls.append(ChoiceDeltaToolCall(index=0, function=function))
        if entries and not calls:
            yield ChatChunkChoice(index=index, delta=ChoiceDelta(), logprobs=logprobs, finish_reason=None)
        for number, call in enumerate(calls):
            own = logprobs if number == len(calls) - 1 else None
            yield ChatChunkChoice(index=index, delta=ChoiceDelta(tool_calls=[call]), logprobs=own, finish_reason=None)

    def _build_chunk(self, *choices: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _build_chunk_choice(self, index: int, token: Token, entries: list[LogprobEntry]) -> ChatChunkChoice:
        logprobs = ChatChunkLogprobs(content=entries, refusal=None) if self.logprobs.enabled else None
        delta = ChoiceDelta(content=token.text)
        return ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=None)


def build_first_chunk_choice(index: int, content: str | None) -> ChatChunkChoice:
    delta = ChoiceDelta(role="assistant", content=content, refusal=None)
    return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)


def build_empty_chunk_choice(index: int, reason: ChatFinishReason | None = None) -> ChatChunkChoice:
    return ChatChunkChoice(index=index, delta=ChoiceDelta(), logprobs=None, finish_reason=reason)
