"""POST /tokenize: the token ids of a prompt, as vLLM's route of this name returns them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from decoding.errors import BadRequest, Unsupported
from decoding.sampling_params import SamplingParams
from server.disconnect import run_until_disconnect
from server.schemas.base import StrictModel, validate
from server.schemas.chat_request import ChatMessages, to_unloaded_messages
from server.schemas.completion_request import PromptText
from server.schemas.field_policy import list_ignored
from server.schemas.normalized_request import NormalizedRequest
from server.schemas.response import dump_json
from server.serving.admission import Admission, AdmissionDep
from server.serving.generation import enforce_timeout
from server.serving.request_handler import build_prompts, check_length, parse_in_thread
from server.serving.strategy_selection import parse_model_suffix


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
        return NormalizedRequest(
            self.model,
            "messages",
            SamplingParams(),
            messages=to_unloaded_messages(self.messages or []),
            ignored=list_ignored(self),
        )


class TokenizeResponse(BaseModel):
    """The tokens of a prompt as the model receives them."""

    count: int = Field(description="Image tokens included.")
    max_model_len: int = Field(description="The limit on the tokens of prompt and answer together.")
    tokens: list[int]


router = APIRouter()


@router.post("/tokenize", responses={200: {"model": TokenizeResponse}}, response_class=Response)
async def tokenize(request: Request, admission: AdmissionDep) -> Response:
    """Tokenize a prompt. A prompt that leaves no room for an answer is refused, as by the other routes."""
    service = admission.service
    normalized = (await parse_in_thread(admission.body, parse_tokenize_request, service)).normalize()
    normalized = replace(normalized, cache_salt=service.build_cache_salt(admission.owner))
    return await run_until_disconnect(request, tokenize_request(normalized, admission))


async def tokenize_request(normalized: NormalizedRequest, admission: Admission) -> Response:
    """Tokenize the prompt of a request, when a row is free for its key.

    Args:
        normalized: The request. It has one prompt.
        admission: The admitted request.

    Returns:
        A `TokenizeResponse` as JSON.

    Raises:
        Unsupported: The engine has no tokenizer.
    """
    service, engine = admission.service, admission.service.ready_engine
    if service.settings.strict:
        normalized.reject_ignored()
    parse_model_suffix(normalized.model, service.model_name)
    if "tokenize" not in engine.capabilities:
        raise Unsupported("This engine has no tokenizer route.")
    async with enforce_timeout(admission.deadline):
        with normalized.rename_error_params():
            check_length(normalized, engine)
            with service.image_loader.memory.lease(normalized.cache_salt) as lease:
                (prompt,) = await build_prompts(normalized, service.image_loader, service.settings.max_images, lease)
                await admission.wait(count_single_row)
                ids = await engine.tokenize(prompt)
                del prompt
    admission.release_rows()
    response = TokenizeResponse(count=len(ids), max_model_len=engine.card.max_model_len, tokens=ids)
    return Response(dump_json(response), media_type="application/json")


async def count_single_row() -> int:
    """Return the rows of a request that only its encoding keeps busy."""
    return 1


def parse_tokenize_request(body: dict[str, Any]) -> TokenizeRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    return validate(TokenizeRequest, body)
