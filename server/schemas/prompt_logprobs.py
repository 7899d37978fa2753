"""The log-probabilities of a prompt's tokens: vLLM's `prompt_logprobs`, and OpenAI's lists for an echoed prompt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import orjson
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel, Field

from decoding.outputs import PromptLogprobs
from server.schemas.response import MIN_LOGPROB, join_entries

MAX_PROMPT_LOGPROBS = 20  # vLLM's default
ScoredToken = tuple[int, float, int]  # id, log-probability, rank


class PromptLogprob(BaseModel):
    """A token at one place of the prompt, without the strategies."""

    logprob: float
    rank: int = Field(description="1 for the likeliest token.")
    decoded_token: str


PromptLogprobList = list[dict[str, PromptLogprob] | None]
PromptLogprobsField = Field(
    default=None,
    description="With prompt_logprobs, for each token of the prompt: token id -> log-probability, for the token itself "
    "and the likeliest ones. null for the first token and for tokens of images.",
)


class CompletionLogprobs(Logprobs):
    """OpenAI's parallel lists. With echo they begin with the prompt, whose first token has no log-probability."""

    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None] | None = None  # type: ignore[assignment]


def iter_tokens(prompt: PromptLogprobs, count: int) -> Iterator[list[ScoredToken] | None]:
    """Walk the tokens of a prompt.

    Args:
        prompt: The prompt's log-probabilities.
        count: Likeliest tokens of each place; there may be more in `prompt`.

    Yields:
        The token itself and the likeliest ones; None for a token without log-probability.
    """
    scores = prompt.scores
    yield None
    for number, token in enumerate(prompt.ids[1:]):
        if not prompt.is_scored[number]:
            yield None
            continue
        ids, values = scores.top_ids[number, :count].tolist(), scores.top_logprobs[number, :count].tolist()
        yield [
            (token, clamp(float(scores.logprobs[number])), int(scores.ranks[number])),
            *((id_, clamp(value), rank) for rank, (id_, value) in enumerate(zip(ids, values, strict=True), start=1)),
        ]


def clamp(logprob: float) -> float:
    """Replace -inf by OpenAI's lowest log-probability."""
    return max(logprob, MIN_LOGPROB)


def dump_prompt_logprobs(prompt: PromptLogprobs, count: int) -> orjson.Fragment:
    """Format vLLM's `prompt_logprobs` as JSON, token by token: as objects they would take hundreds of megabytes."""
    return join_entries([dump_token(tokens, prompt) for tokens in iter_tokens(prompt, count)])


def dump_token(tokens: list[ScoredToken] | None, prompt: PromptLogprobs) -> bytes:
    if tokens is None:
        return b"null"
    return orjson.dumps(
        {
            str(token): {"logprob": logprob, "rank": rank, "decoded_token": prompt.texts[token]}
            for token, logprob, rank in tokens
        }
    )


def build_echoed_logprobs(prompt: PromptLogprobs, count: int) -> CompletionLogprobs:
    """Build OpenAI's lists for the tokens of an echoed prompt.

    Args:
        prompt: The prompt's log-probabilities.
        count: Likeliest tokens of each place.

    Returns:
        The lists. An offset is that in the text, which has no special tokens.
    """
    names: list[str] = []
    for token, (start, end) in zip(prompt.ids, pairwise(prompt.offsets), strict=True):
        name = prompt.texts[token]
        # Some tokenizers put a space before the first word, which is no part of the text.
        names.append(name[1:] if start == 0 and name.startswith(" ") and end == len(name) - 1 else name)
    all_tokens = list(iter_tokens(prompt, count))
    return CompletionLogprobs(
        tokens=names,
        token_logprobs=[tokens[0][1] if tokens else None for tokens in all_tokens],
        top_logprobs=[
            {prompt.texts[token]: logprob for token, logprob, _ in (*tokens[1:], tokens[0])} if tokens else None
            for tokens in all_tokens
        ],
        text_offset=list(prompt.offsets[:-1]),
    )
