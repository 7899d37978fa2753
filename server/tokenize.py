"""POST /tokenize: what a prompt is to the model, as vLLM's route of this name tells it."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from decoding.errors import BadRequest, Unsupported
from decoding.sampling import Sampling
from server import doors
from server.asking import json_body
from server.messages import AnyMessage, turns
from server.question import Question
from server.service import TheService
from server.text_request import PromptText
from server.wire import Wire, read, read_json, to_json

router = APIRouter()


class TokenizeRequest(Wire):
    """A `prompt` is taken as it is, `messages` go through the model's chat template."""

    model: str = Field(max_length=512)
    prompt: PromptText | None = None
    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=1024)] | None = None

    @model_validator(mode="after")
    def _asks_one_thing(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("Send prompt or messages, and not both.", param="prompt")
        return self

    @property
    def question(self) -> Question:
        if self.prompt is not None:
            return Question(self.model, "prompt", Sampling(), texts=(self.prompt,))
        return Question(self.model, "messages", Sampling(), turns=turns(self.messages or []))


class Tokens(BaseModel):
    count: int = Field(description="Those that stand for pictures included.")
    max_model_len: int = Field(description="Of prompt and answer together.")
    tokens: list[int]


@router.post("/tokenize", responses={200: {"model": Tokens}}, response_class=Response)
async def tokenize(request: Request, service: TheService) -> Response:
    """The ids that the model reads. A prompt that leaves no room for an answer is refused, here as elsewhere."""
    asked = await run_sync(parse, await json_body(request))
    engine = service.ready_engine
    doors.suffix_of(asked.model, service.settings.name)
    if "tokens" not in engine.capabilities:
        raise Unsupported("This engine does not tell its tokens.")
    question = asked.question
    with question.fields_as_sent():
        (prompt,) = await question.prompts(service.pictures, service.settings.max_images)
        ids = await engine.tokens(prompt)
    told = Tokens(count=len(ids), max_model_len=engine.card.context, tokens=ids)
    return Response(to_json(told), media_type="application/json")


def parse(body: bytes) -> TokenizeRequest:
    return read(TokenizeRequest, read_json(body))
