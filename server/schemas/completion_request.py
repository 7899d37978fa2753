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
    "response_format": "structured_outputs has the formats of completions",
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
    max_tokens: int | None = Field(
        default=None, ge=0, le=MAX_TOKEN_BOUND, description=f"Default {DEFAULT_MAX_TOKENS}. 0 needs echo."
    )
    echo: bool | None = Field(
        default=None,
        description="Default false. The text begins with the prompt, and logprobs with those of its tokens. They are "
        "those without the strategies.",
    )
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
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens may be 0 with echo only.", param="max_tokens")
        self.check_shared_fields(self.max_new_tokens)
        return self

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that are generated. An engine generates at least one, which the response may leave out."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else max(1, self.max_tokens)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts to continue."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def echoed_prompts(self) -> tuple[str, ...]:
        """The text with which each choice begins; none without echo."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.n or 1)) if self.echo else ()

    @property
    def echoed_logprobs(self) -> int | None:
        """Likeliest tokens beside each token of the echoed prompt; None without their log-probabilities."""
        return self.logprobs if self.echo else None

    def normalize(self) -> NormalizedRequest:
        counts = [count for count in (self.prompt_logprobs, self.echoed_logprobs) if count is not None]
        return NormalizedRequest(
            self.model,
            "prompt",
            self.to_sampling_params(self.max_new_tokens, self.logprobs),
            texts=self.prompts,
            decoding=self.decoding or Decoding(),
            max_tokens_param="max_tokens",
            choices=self.n or 1,
            prompt_logprobs=max(counts, default=None),
            prompt_logprobs_param="logprobs" if self.prompt_logprobs is None else "prompt_logprobs",
            user=self.user,
            output_format=self.structured_outputs.to_output_format() if self.structured_outputs else None,
            ignored=list_ignored(self),
        )


def parse_completion_request(body: Mapping[str, Any]) -> CompletionRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    return validate(CompletionRequest, reject_unsupported(body, UNSUPPORTED))
