"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.asking import Asked, respond
from server.chat_letter import ChatLetter, Completion
from server.chat_request import parse
from server.entry import Entered
from server.letter import answers
from server.logprobs import Entries

router = APIRouter()


@router.post("/v1/chat/completions", responses=answers(Completion), response_class=Response)
async def create_chat_completion(request: Request, service: Entered) -> Response:
    """Answer a conversation with pictures. `decoding` chooses the strategy; `onlyseen` in the answer says what ran."""
    return await respond(request, service, read)


def read(body: bytes) -> Asked:
    chat = parse(body)
    entries = Entries(chat.wants_logprobs, grounding=chat.wants_grounding, trace=chat.wants_trace)
    return Asked(chat.question, ChatLetter(chat.model, entries, chat.wants_usage), bool(chat.stream))
