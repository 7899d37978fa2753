"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from decoding.errors import BadRequest
from server.decoding_field import Decoding
from server.messages import AnyMessage, turns
from server.question import Question
from server.response_format import ResponseFormat, TextFormat
from server.sampled import SampledRequest
from server.unsupported import CHAT, supported
from server.wire import read, read_json


class ChatRequest(SampledRequest):
    """OpenAI's chat completion request, with vLLM's extra sampling fields and `decoding`."""

    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=1024)] = Field(
        description="Ends with the user's."
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Default: as many as the context holds.")
    max_tokens: int | None = Field(default=None, ge=1, description="The older name of max_completion_tokens.")
    response_format: ResponseFormat | None = Field(default=None, description="Default: free text.")
    logprobs: bool | None = Field(default=None, description="Default: whether decoding.grounding or trace is true.")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="Needs logprobs.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise BadRequest("The last message must be the user's.", param="messages")
        if self.max_tokens and self.max_tokens != self.most:
            raise BadRequest("max_tokens says something else than max_completion_tokens.", param="max_tokens")
        if self.is_structured and (self.min_tokens or self.ignore_eos):
            raise BadRequest("An answer that has a format ends when it is complete.", param="response_format")
        if self.top_logprobs is not None and not self.wants_logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.logprobs is False and (self.wants_grounding or self.wants_trace):
            asked = "grounding" if self.wants_grounding else "trace"
            raise BadRequest(f"decoding.{asked} is told in logprobs, which are switched off.", param="logprobs")
        self.agrees_with_itself(self.most)
        return self

    @property
    def most(self) -> int | None:
        """Tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def is_structured(self) -> bool:
        return self.response_format is not None and not isinstance(self.response_format, TextFormat)

    @property
    def wants_logprobs(self) -> bool:
        return self.wants_grounding or self.wants_trace if self.logprobs is None else self.logprobs

    @property
    def question(self) -> Question:
        return Question(
            self.model,
            "messages",
            self.sampling(self.most, (self.top_logprobs or 0) if self.wants_logprobs else None),
            turns=turns(self.messages),
            decoding=self.decoding or Decoding(),
            format=self.response_format,
            most_param="max_tokens" if self.max_tokens else "max_completion_tokens",
            choices=self.n or 1,
            user=self.user,
        )


def parse(body: bytes) -> ChatRequest:
    """Raises: BadRequest: the first thing that is wrong with it."""
    return read(ChatRequest, supported(read_json(body), CHAT))
