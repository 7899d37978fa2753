"""The documents and events of /v1/responses: the openai package's own types, with the receipt added."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage
from pydantic import BaseModel
from sse_starlette import ServerSentEvent

from decoding.answer import Reason, Token
from server.errors import Explanation
from server.letter import event
from server.logprobs import Entries
from server.receipt import Receipt
from server.reply import Reply
from server.responses_request import ResponsesRequest


class ResponseDocument(Response):
    """What OpenAI's has; once it has ended, also the receipt."""

    output: list[ResponseOutputMessage]  # type: ignore[assignment]
    onlyseen: Receipt | None = None


@dataclass(frozen=True, slots=True)
class ResponsesLetter:
    request: ResponsesRequest
    entries: Entries
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    created: float = field(default_factory=time.time)
    numbers: Iterator[int] = field(default_factory=count)

    def whole(self, said: list[list[Token]], reply: Reply) -> str:
        text = "".join(token.text for token in said[0])
        return self._ended(text, self._logprobs(said[0]), reply).model_dump_json(by_alias=True, exclude_unset=True)

    async def events(self, reply: Reply) -> AsyncGenerator[ServerSentEvent, None]:
        begun, blank = dump(self._document("in_progress")), part("", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=dump(self._message("in_progress")))
        yield self._in_text("response.content_part.added", part=dump(blank))
        text, logprobs = "", list[dict[str, Any]]()
        async for _, token in reply.tokens():
            entries = self._logprobs([token])
            text, logprobs = text + token.text, logprobs + entries
            if token.text or entries:
                yield self._in_text("response.output_text.delta", delta=token.text, logprobs=entries)
        yield self._in_text("response.output_text.done", text=text, logprobs=logprobs)
        yield self._in_text("response.content_part.done", part=dump(part(text, logprobs)))
        document = self._ended(text, logprobs, reply)
        yield self._event("response.output_item.done", output_index=0, item=dump(document.output[0]))
        yield self._event(f"response.{document.status}", response=dump(document))

    def failed(self, explanation: Explanation) -> ServerSentEvent:
        error = explanation.body.error
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _event(self, type: str, **fields: Any) -> ServerSentEvent:
        return event(to_line({"type": type, "sequence_number": next(self.numbers), **fields}), type)

    def _in_text(self, type: str, **fields: Any) -> ServerSentEvent:
        return self._event(type, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def _ended(self, text: str, logprobs: list[dict[str, Any]], reply: Reply) -> ResponseDocument:
        reason: Reason = reply.ends[0].reason
        status = "completed" if reason == "stop" else "incomplete"
        return self._document(
            status,
            output=[self._message(status, part(text, logprobs))],
            incomplete_details=None if reason == "stop" else {"reason": "max_output_tokens"},
            completed_at=time.time() if reason == "stop" else None,
            usage=usage(reply),
            onlyseen=reply.receipt,
        )

    def _document(self, status: str, **fields: Any) -> ResponseDocument:
        """What was left out of the request is said as it was understood."""
        asked, sampling = self.request, self.request.question.sampling
        known = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": asked_format(asked)},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }
        return ResponseDocument.model_validate({**known, **fields})

    def _message(self, status: str, *parts: ResponseOutputText) -> ResponseOutputMessage:
        return ResponseOutputMessage.model_validate(
            {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": list(parts)}
        )

    def _logprobs(self, tokens: list[Token]) -> list[dict[str, Any]]:
        return [entry.model_dump(exclude_unset=True) for token in tokens for entry in self.entries.of(token)]


def part(text: str, logprobs: list[dict[str, Any]]) -> ResponseOutputText:
    return ResponseOutputText.model_validate(
        {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    )


def asked_format(asked: ResponsesRequest) -> dict[str, Any]:
    wanted = asked.text and asked.text.format
    return {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_unset=True)


def usage(reply: Reply) -> ResponseUsage:
    spent = reply.usage
    return ResponseUsage(
        input_tokens=spent.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=spent.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=spent.prompt_tokens + spent.completion_tokens,
    )


def dump(document: BaseModel) -> dict[str, Any]:
    return document.model_dump(mode="json", by_alias=True, exclude_unset=True)


def to_line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
