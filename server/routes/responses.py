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
from openai.types.responses import ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from decoding.outputs import FinishReason
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
from server.serving.admission import AdmissionDep
from server.serving.generation import Generation
from server.serving.request_handler import ParsedRequest, respond


class ResponsesResponse(OpenAIResponse):
    """OpenAI's response. A finished one also has the receipt."""

    output: list[ResponseOutputMessage]  # type: ignore[assignment]
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
    created: float = field(default_factory=time.time)
    sequence_numbers: Iterator[int] = field(default_factory=count)

    async def format_full(self, generation: Generation) -> bytes:
        text, entries = list[str](), list[bytes]()
        async for _, token in generation.stream_tokens():
            text.append(token.text)
            entries += self.logprobs.dump_token(token)
        return orjson.dumps(self._build_finished("".join(text), join_entries(entries), generation))

    async def stream_events(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        in_progress = to_json_fields(self._build_document("in_progress"))
        yield self._build_event("response.created", response=in_progress)
        yield self._build_event("response.in_progress", response=in_progress)
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

    def format_error(self, error: ErrorResponse) -> ServerSentEvent:
        detail = error.body.error
        return self._build_event("error", code=detail.code, message=detail.message, param=detail.param)

    def _build_event(self, type: str, **fields: Any) -> ServerSentEvent:
        data = {"type": type, "sequence_number": next(self.sequence_numbers), **fields}
        return build_event(orjson.dumps(data).decode(), type)

    def _build_text_event(self, type: str, **fields: Any) -> ServerSentEvent:
        return self._build_event(type, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def _build_finished(self, text: str, logprobs: orjson.Fragment, generation: Generation) -> dict[str, Any]:
        reason: FinishReason = generation.finish_infos[0].reason
        status = "completed" if reason == "stop" else "incomplete"
        document = self._build_document(
            status,
            output=[self._build_message(status, build_text_part(text))],
            incomplete_details=None if reason == "stop" else {"reason": "max_output_tokens"},
            completed_at=time.time() if reason == "stop" else None,
            usage=build_usage(generation),
            onlyseen=generation.receipt,
        )
        fields = to_json_fields(document)
        fields["output"][0]["content"][0]["logprobs"] = logprobs
        return fields

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
            "tool_choice": "none",
            "tools": [],
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
