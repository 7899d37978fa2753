"""POST /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.asking import Asked, respond
from server.entry import Entered
from server.letter import answers
from server.logprobs import Entries
from server.responses_letter import ResponseDocument, ResponsesLetter
from server.responses_request import parse

router = APIRouter()


@router.post("/v1/responses", responses=answers(ResponseDocument), response_class=Response)
async def create_response(request: Request, service: Entered) -> Response:
    """Answer a conversation with pictures, in OpenAI's newer form. Responses are not stored."""
    return await respond(request, service, read)


def read(body: bytes) -> Asked:
    asked = parse(body)
    decoding = asked.question.decoding
    entries = Entries(asked.wants_logprobs, grounding=bool(decoding.grounding), trace=bool(decoding.trace))
    return Asked(asked.question, ResponsesLetter(asked, entries), bool(asked.stream))
