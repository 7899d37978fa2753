"""The body of POST /v1/completions: texts to continue, without images and without a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, Tag, model_validator

from decoding.errors import BadRequest
from server.schemas.base import MAX_TOKEN_BOUND, STRING_OR_ARRAY, validate
from server.schemas.field_policy import (
    NO_CHAT,
    VLLM_UNSUPPORTED,
    PlatformFields,
    list_ignored,
    reject_unsupported,
)
from server.schemas.normalized_request import Decoding, NormalizedRequest, SamplingFields

UNSUPPORTED: Mapping[str, str] = {
    **VLLM_UNSUPPORTED,
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), NO_CHAT),
    "best_of": "send n and choose by logprobs",
    "echo": "the response does not repeat the prompt",
    "prompt_logprobs": "only generated tokens have log-probabilities",
    "suffix": "the served models only continue a text",
}
DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 8
PromptText = Annotated[str, Field(min_length=1)]
PromptTexts = Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]


class CompletionRequest(SamplingFields, PlatformFields):
    """OpenAI's older completion request, with vLLM's extra sampling fields and `decoding`."""

    prompt: Annotated[Annotated[PromptText, Tag("string")] | Annotated[PromptTexts, Tag("array")], STRING_OR_ARRAY] = (
        Field(description=f"One text, or up to {MAX_PROMPTS}. Token ids are not accepted.")
    )
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKEN_BOUND, description=f"Default {DEFAULT_MAX_TOKENS}.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=5,
        description="The number of likeliest tokens per step, listed beside the chosen one.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> CompletionRequest:
        if self.wants_grounding or self.wants_trace:
            param = "decoding.grounding" if self.wants_grounding else "decoding.trace"
            raise BadRequest(f"Only /v1/chat/completions supports {param}.", param=param)
        if self.wants_check:
            raise BadRequest("decoding.check needs an image, and a completion has none.", param="decoding.check")
        self.check_shared_fields(self.max_new_tokens)
        return self

    @property
    def max_new_tokens(self) -> int:
        return self.max_tokens or DEFAULT_MAX_TOKENS

    def normalize(self) -> NormalizedRequest:
        return NormalizedRequest(
            self.model,
            "prompt",
            self.to_sampling_params(self.max_new_tokens, self.logprobs),
            texts=(self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt),
            decoding=self.decoding or Decoding(),
            max_tokens_param="max_tokens",
            choices=self.n or 1,
            user=self.user,
            output_format=self.structured_outputs.to_output_format() if self.structured_outputs else None,
            ignored=list_ignored(self),
        )


def parse_completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    return validate(CompletionRequest, reject_unsupported(body, UNSUPPORTED))
