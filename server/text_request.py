"""The body of POST /v1/completions: texts to go on from, without pictures and without a chat template."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Tag, model_validator

from decoding.errors import BadRequest
from server.decoding_field import Decoding
from server.question import Question
from server.sampled import SampledRequest
from server.unsupported import TEXT, supported
from server.wire import STRING_OR_ARRAY, read, read_json

OPENAIS_LENGTH = 16  # tokens, where max_tokens is not said
PromptText = Annotated[str, Field(min_length=1)]
PromptTexts = Annotated[list[PromptText], Field(min_length=1, max_length=8)]


class TextRequest(SampledRequest):
    """OpenAI's older completion request, with vLLM's extra sampling fields and `decoding`."""

    prompt: Annotated[Annotated[PromptText, Tag("string")] | Annotated[PromptTexts, Tag("array")], STRING_OR_ARRAY] = (
        Field(description="One text, or up to 8; texts, not tokens.")
    )
    max_tokens: int | None = Field(default=None, ge=1, description=f"Default {OPENAIS_LENGTH}.")
    logprobs: int | None = Field(
        default=None, ge=0, le=5, description="Of so many likeliest tokens at each place, and of the chosen one."
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> TextRequest:
        if self.wants_grounding or self.wants_trace:
            asked = "grounding" if self.wants_grounding else "trace"
            raise BadRequest(f"decoding.{asked} is told by /v1/chat/completions alone.", param=f"decoding.{asked}")
        self.agrees_with_itself(self.most)
        return self

    @property
    def most(self) -> int:
        return self.max_tokens or OPENAIS_LENGTH

    @property
    def question(self) -> Question:
        return Question(
            self.model,
            "prompt",
            self.sampling(self.most, self.logprobs),
            texts=(self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt),
            decoding=self.decoding or Decoding(),
            choices=self.n or 1,
            most_param="max_tokens",
            user=self.user,
        )


def parse(body: bytes) -> TextRequest:
    """Raises: BadRequest: the first thing that is wrong with it."""
    return read(TextRequest, supported(read_json(body), TEXT))
