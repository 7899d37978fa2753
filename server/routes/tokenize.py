"""POST /tokenize: the token ids of a prompt, as vLLM's route of this name returns them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from decoding.errors import BadRequest, Unsupported
from decoding.sampling_params import SamplingParams
from server.middleware.auth import OwnerDep
from server.schemas.base import StrictModel, validate
from server.schemas.chat_request import ChatMessages, to_turns
from server.schemas.completion_request import PromptText
from server.schemas.generation_request import NormalizedRequest
from server.schemas.response import dump_json
from server.serving.body_budget import read_json_body
from server.serving.respond import check_length, parse_in_thread
from server.serving.strategy_selection import parse_model_suffix
from server.state import Service, ServiceDep


class TokenizeRequest(StrictModel):
    """Either a `prompt`, used as it is, or `messages`, to which the model's chat template is applied."""

    model: str = Field(max_length=512)
    prompt: PromptText | None = None
    messages: ChatMessages | None = None

    @model_validator(mode="after")
    def _has_one_input(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("Send either prompt or messages.", param="prompt")
        return self

    def normalize(self) -> NormalizedRequest:
        if self.prompt is not None:
            return NormalizedRequest(self.model, "prompt", SamplingParams(), texts=(self.prompt,))
        return NormalizedRequest(self.model, "messages", SamplingParams(), turns=to_turns(self.messages or []))


class TokenizeResponse(BaseModel):
    count: int = Field(description="Image tokens included.")
    max_model_len: int = Field(description="The limit on the tokens of prompt and answer together.")
    tokens: list[int]


router = APIRouter()


@router.post("/tokenize", responses={200: {"model": TokenizeResponse}}, response_class=Response)
async def tokenize(request: Request, service: ServiceDep, owner: OwnerDep) -> Response:
    """Tokenize a prompt. A prompt that leaves no room for an answer is refused, as by the other routes."""
    async with read_json_body(request, service.body_budget, owner) as body:
        normalized = (await parse_in_thread(body, parse_tokenize_request, service)).normalize()
        return await tokenize_request(replace(normalized, cache_salt=service.build_cache_salt(owner)), service)


async def tokenize_request(normalized: NormalizedRequest, service: Service) -> Response:
    """Tokenize the prompt of a request.

    Args:
        normalized: The request. It has one prompt.
        service: The server's state.

    Returns:
        A `TokenizeResponse` as JSON.

    Raises:
        Unsupported: the engine has no tokenizer.
    """
    engine = service.ready_engine
    parse_model_suffix(normalized.model, service.settings.name)
    if "tokens" not in engine.capabilities:
        raise Unsupported("This engine has no tokenizer route.")
    with normalized.rename_error_params():
        check_length(normalized, engine)
        with service.image_loader.memory.lease(normalized.cache_salt) as lease:
            (prompt,) = await normalized.build_prompts(service.image_loader, service.settings.max_images, lease)
            ids = await engine.tokenize(prompt)
            del prompt
    response = TokenizeResponse(count=len(ids), max_model_len=engine.card.max_model_len, tokens=ids)
    return Response(dump_json(response), media_type="application/json")


def parse_tokenize_request(body: dict[str, Any]) -> TokenizeRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    return validate(TokenizeRequest, body)
