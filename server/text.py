"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.asking import Asked, respond
from server.entry import Entered
from server.letter import answers
from server.text_letter import TextCompletion, TextLetter
from server.text_request import parse

router = APIRouter()


@router.post("/v1/completions", responses=answers(TextCompletion), response_class=Response)
async def create_completion(request: Request, service: Entered) -> Response:
    """Go on from a text, without the model's chat template and without pictures."""
    return await respond(request, service, read)


def read(body: bytes) -> Asked:
    text = parse(body)
    return Asked(text.question, TextLetter(text.model, text.logprobs is not None, text.wants_usage), bool(text.stream))
