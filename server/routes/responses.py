"""POST /v1/responses: the route and its documents and events, which are the openai package's with the receipt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import orjson
from fastapi import APIRouter, Request
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from decoding.sampling_params import SamplingParams
from server.errors import ErrorResponse
from server.schemas.response import (
    ClaimsUpdate,
    LogprobFormatter,
    Receipt,
    build_event,
    build_openapi_responses,
    join_entries,
    to_json_fields,
)
from server.schemas.responses_request import ResponsesRequest, parse_responses_request
from server.schemas.tool_calls import FlatToolChoice, ToolCallParser
from server.serving.admission import AdmissionDep
from server.serving.generation import Generation
from server.serving.request_handler import ParsedRequest, respond


class ResponsesResponse(OpenAIResponse):
    """OpenAI's response. A finished one also has the receipt."""

    output: list[ResponseOutputMessage | ResponseFunctionToolCall]  # type: ignore[assignment]
    onlyseen: Receipt | None = None


router = APIRouter()


@router.post("/v1/responses", responses=build_openapi_responses(ResponsesResponse), response_class=Response)
async def create_response(request: Request, admission: AdmissionDep) -> Response:
    """Answer a conversation with images, in OpenAI's newer format. The server does not store responses."""
    return await respond(request, admission, parse_body)


def parse_body(body: dict[str, Any]) -> ParsedRequest:
    """Validate a body and build its formatter, or raise BadRequest for the first error."""
    fields = parse_responses_request(body)
    request = fields.normalize()
    decoding = request.decoding
    logprobs = LogprobFormatter(fields.wants_logprobs, grounding=bool(decoding.grounding), trace=bool(decoding.trace))
    without_input = fields.model_copy(update={"input": ""})  # so that the images' data URLs can be freed
    formatter = ResponsesFormatter(without_input, request.sampling, logprobs)
    return ParsedRequest(request, formatter, bool(fields.stream))


@dataclass(frozen=True, slots=True)
class ResponsesFormatter:
    """Writes the responses of `/v1/responses`."""

    fields: ResponsesRequest  # without the input
    sampling: SamplingParams
    logprobs: LogprobFormatter
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    call_item_id: str = field(default_factory=lambda: f"fc_{uuid4().hex}")
    created: float = field(default_factory=time.time)
    sequence_numbers: Iterator[int] = field(default_factory=count)

    async def format_full(self, generation: Generation) -> bytes:
        if self.fields.forced_call is not None:
            async for _ in self._stream_call_parts(generation, parser := self._create_parser()):
                pass
            return orjson.dumps(self._build_finished_call(parser, generation))
        text, entries = list[str](), list[bytes]()
        async for _, token in generation.stream_tokens():
            text.append(token.text)
            entries += self.logprobs.dump_token(token)
        return orjson.dumps(self._build_finished("".join(text), join_entries(entries), generation))

    async def stream_events(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        in_progress = to_json_fields(self._build_document("in_progress"))
        yield self._build_event("response.created", response=in_progress)
        yield self._build_event("response.in_progress", response=in_progress)
        async for event in (
            self._stream_text(generation) if self.fields.forced_call is None else self._stream_call(generation)
        ):
            yield event

    def format_error(self, error: ErrorResponse) -> ServerSentEvent:
        detail = error.body.error
        return self._build_event("error", code=detail.code, message=detail.message, param=detail.param)

    async def _stream_text(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        """Write the events of an answer of text, up to the last one."""
        item = to_json_fields(self._build_message("in_progress"))
        yield self._build_event("response.output_item.added", output_index=0, item=item)
        yield self._build_text_event("response.content_part.added", part=to_json_fields(build_text_part("")))
        texts, all_entries = list[str](), list[bytes]()
        async for _, token in generation.stream_tokens():
            entries = self.logprobs.dump_token(token)
            texts.append(token.text)
            all_entries += entries
            if token.text or entries:
                delta = {"delta": token.text, "logprobs": join_entries(entries)}
                yield self._build_text_event("response.output_text.delta", **delta)
            if token.claims:
                update = to_json_fields(ClaimsUpdate(claims=generation.to_claim_entries(0, token)))
                yield self._build_text_event("response.output_text.delta", delta="", logprobs=[], onlyseen=update)
        text, logprobs = "".join(texts), join_entries(all_entries)
        document = self._build_finished(text, logprobs, generation)
        (item,) = document["output"]
        yield self._build_text_event("response.output_text.done", text=text, logprobs=logprobs)
        yield self._build_text_event("response.content_part.done", part=item["content"][0])
        yield self._build_event("response.output_item.done", output_index=0, item=item)
        yield self._build_event(f"response.{document['status']}", response=document)

    async def _stream_call(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        """Write the events of an answer that is a tool call, up to the last one."""
        parser, place = self._create_parser(), {"item_id": self.call_item_id, "output_index": 0}
        async for arguments in self._stream_call_parts(generation, parser):
            if not parser.has_started:
                parser.has_started = True
                item = to_json_fields(self._build_call(parser, "in_progress", ""))
                yield self._build_event("response.output_item.added", output_index=0, item=item)
            if arguments:
                yield self._build_event("response.function_call_arguments.delta", **place, delta=arguments)
        document = self._build_finished_call(parser, generation)
        for item in document["output"]:
            yield self._build_event("response.function_call_arguments.done", **place, arguments=parser.arguments)
            yield self._build_event("response.output_item.done", output_index=0, item=item)
        yield self._build_event(f"response.{document['status']}", response=document)

    def _create_parser(self) -> ToolCallParser:
        return ToolCallParser(self.fields.forced_call.names if self.fields.forced_call else ())

    async def _stream_call_parts(self, generation: Generation, parser: ToolCallParser) -> AsyncGenerator[str, None]:
        """Yield each piece of the arguments from the token on that completes the name of the function."""
        async for _, token in generation.stream_tokens():
            arguments = parser.add(token.text) + (parser.finish() if token.finish else "")
            if parser.name is not None:
                yield arguments

    def _build_event(self, type: str, **fields: Any) -> ServerSentEvent:
        data = {"type": type, "sequence_number": next(self.sequence_numbers), **fields}
        return build_event(orjson.dumps(data).decode(), type)

    def _build_text_event(self, type: str, **fields: Any) -> ServerSentEvent:
        return self._build_event(type, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def _build_finished(self, text: str, logprobs: orjson.Fragment, generation: Generation) -> dict[str, Any]:
        message = self._build_message(get_status(generation), build_text_part(text))
        fields = to_json_fields(self._build_ended(generation, message))
        fields["output"][0]["content"][0]["logprobs"] = logprobs
        return fields

    def _build_finished_call(self, parser: ToolCallParser, generation: Generation) -> dict[str, Any]:
        """Build the response with a call, or without one if the answer is cut off before it names a function."""
        calls = [] if parser.name is None else [self._build_call(parser, get_status(generation), parser.arguments)]
        return to_json_fields(self._build_ended(generation, *calls))

    def _build_call(self, parser: ToolCallParser, status: str, arguments: str) -> ResponseFunctionToolCall:
        return ResponseFunctionToolCall.model_validate(
            {
                "type": "function_call",
                "id": self.call_item_id,
                "call_id": parser.id,
                "name": parser.name,
                "arguments": arguments,
                "status": status,
            }
        )

    def _build_ended(
        self, generation: Generation, *output: ResponseOutputMessage | ResponseFunctionToolCall
    ) -> ResponsesResponse:
        status = get_status(generation)
        return self._build_document(
            status,
            output=list(output),
            incomplete_details=None if status == "completed" else {"reason": "max_output_tokens"},
            completed_at=time.time() if status == "completed" else None,
            usage=build_usage(generation),
            onlyseen=generation.receipt,
        )

    def _build_document(self, status: str, **fields: Any) -> ResponsesResponse:
        """Build the response; a field that the request omits has the value that the server used."""
        request, sampling = self.fields, self.sampling
        base = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": dump_format(request)},
            "tool_choice": dump_tool_choice(request),
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }
        return ResponsesResponse.model_validate({**base, **fields})

    def _build_message(self, status: str, *parts: ResponseOutputText) -> ResponseOutputMessage:
        return ResponseOutputMessage.model_validate(
            {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": list(parts)}
        )


def build_text_part(text: str) -> ResponseOutputText:
    return ResponseOutputText.model_validate({"type": "output_text", "text": text, "annotations": [], "logprobs": []})


def get_status(generation: Generation) -> str:
    """Return the status of a response whose generation has ended."""
    return "completed" if generation.finish_infos[0].reason == "stop" else "incomplete"


def dump_tool_choice(request: ResponsesRequest) -> str | dict[str, Any]:
    """Return the choice of the request; `none` without tools."""
    choice = request.tool_choice if request.tools else None
    return choice.model_dump() if isinstance(choice, FlatToolChoice) else choice or "none"


def dump_format(request: ResponsesRequest) -> dict[str, Any]:
    text_format = request.text and request.text.format
    return {"type": "text"} if text_format is None else text_format.model_dump(by_alias=True, exclude_unset=True)


def build_usage(generation: Generation) -> ResponseUsage:
    usage = generation.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
