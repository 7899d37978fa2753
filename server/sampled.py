"""The fields that chat and text completions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, Tag

from decoding.errors import BadRequest
from decoding.sampling import Sampling
from server.decoding_field import Decoding
from server.wire import STRING_OR_ARRAY, Wire

DEFAULTS = Sampling(temperature=1.0)  # OpenAI's; 0 is greedy
SEEDS = 1 << 63
LEAST_TOP_P = 1e-9  # what 0 is to an engine, which needs more than none
GREEDY = 1e-5  # a temperature below it is 0: scores that are divided by less leave the numbers of an engine
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
StopStrings = Annotated[list[StopString], Field(max_length=4)]


class StreamOptions(Wire):
    include_usage: bool | None = Field(default=None, description="A last chunk without choices carries the usage.")


class SampledRequest(Wire):
    """vLLM's sampling fields are OpenAI's and more. A field that is null, or is left out, has its default."""

    model: str = Field(max_length=512, description="As /v1/models lists it; a suffix chooses the strategy: name:agla")
    decoding: Decoding | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0, le=100_000, description="Default 0. No end before that many.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1. 0 takes the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Default 1. 0 takes the likeliest token.")
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="Default 0. 0 and -1: off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Default 0.")
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10, description="Default 1. Prompt included.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="Default 0.")
    seed: int | None = Field(default=None, ge=-SEEDS, lt=SEEDS, description="Choice i is drawn with seed + i.")
    stop: (
        Annotated[Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("array")], STRING_OR_ARRAY] | None
    ) = Field(default=None, description="Up to 4 strings; the answer ends before the first.")
    ignore_eos: bool | None = Field(default=None, description="Default false. Go on to max_tokens.")
    n: int | None = Field(default=None, ge=1, le=8, description="Default 1. Answers to the same question.")
    stream: bool | None = Field(
        default=None, description="Default false. Server-sent events; `data: [DONE]` is the last."
    )
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=256, description="Written to the log.")

    def agrees_with_itself(self, most: int | None) -> None:
        """`most`: tokens. Raises: BadRequest."""
        if most and self.min_tokens and self.min_tokens > most:
            raise BadRequest("min_tokens is larger than max_tokens.", param="min_tokens")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream to be true.", param="stream_options")

    @property
    def wants_grounding(self) -> bool:
        return self.decoding is not None and bool(self.decoding.grounding)

    @property
    def wants_trace(self) -> bool:
        return self.decoding is not None and bool(self.decoding.trace)

    @property
    def wants_usage(self) -> bool:
        """Of a streamed answer; a whole one always has it."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, most: int | None, top_logprobs: int | None) -> Sampling:
        return sampling(
            {name: getattr(self, name) for name in TAKEN_OVER},
            max_tokens=most,
            top_k=max(self.top_k or 0, 0),
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            top_logprobs=top_logprobs,
        )


TAKEN_OVER = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)


def sampling(said: Mapping[str, Any], **fields: Any) -> Sampling:
    """What the request leaves out, or says to be null, is as OpenAI has it."""
    sampling = replace(DEFAULTS, **{name: value for name, value in said.items() if value is not None}, **fields)
    temperature = 0.0 if sampling.temperature < GREEDY else sampling.temperature
    return replace(sampling, temperature=temperature, top_p=max(sampling.top_p, LEAST_TOP_P))
