"""Parts of the responses of all generating routes: the receipt, the log-probabilities of a token, and SSE events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_usage import CompletionUsage
from pydantic import BaseModel, Field
from sse_starlette import ServerSentEvent

from decoding.errors import EngineFailed
from decoding.outputs import NO_TOKEN, CheckedClaim, ClaimAction, Token, TokenLogprob, Usage

DONE = "[DONE]"
MIN_LOGPROB = -9999.0  # OpenAI's; JSON has no -inf


class ClaimEntry(BaseModel):
    """A thing that the answer names, and how sure the model is that it is in the image."""

    text: str = Field(description="The phrase, as the model wrote it.")
    start: int | None = Field(
        description="Offset of its first character in the answer, in code points. null if the answer does not have it."
    )
    end: int | None = Field(description="Offset after its last character, likewise.")
    question: str = Field(description="The question that the server sent to the model.")
    probability: float = Field(description="P(yes) / (P(yes) + P(no)) of the question.")
    action: ClaimAction | None = Field(
        default=None, description="Action of the strategy verify on the phrase. Absent with other strategies."
    )
    choice: int | None = Field(default=None, description="Index of the choice. Absent if there is only one.")


class ClaimsUpdate(BaseModel):
    """The claims of a sentence in a stream, as soon as they are checked. The receipt has them again."""

    claims: list[ClaimEntry]


class Receipt(BaseModel):
    """The record of a request: strategy and cost. With n > 1 the counts are sums over the choices.

    Each timing is that of the slowest choice. The time in which a choice waits for others of its request is only in
    `total`.
    """

    strategy: str = Field(description="Outermost first, joined by '+'.")
    parameters: dict[str, dict[str, Any]] = Field(description="Of every strategy, defaults included.")
    branches: list[str] = Field(description="Extra prompts decoded in lockstep. Each adds one row per step.")
    steps: int = Field(description="Tokens generated.")
    forward_passes: int = Field(
        description="Rows run through the model, with the prompts and the strategies' extra requests."
    )
    changed_steps: int | None = Field(
        description="Steps whose likeliest token the strategy changed. null for a strategy that acts inside the model."
    )
    timings: dict[str, float] = Field(
        description="Seconds by phase. total is the server's and starts at the parsed request."
    )
    ignored: list[str] | None = Field(
        default=None, description="Fields of the request that had no effect. Absent if there are none."
    )
    pictures: dict[str, list[str]] | None = Field(
        default=None,
        description="With decoding.trace, as data URLs of PNGs: the edited images of branches and of the main "
        "prompt, and relevance maps.",
    )
    claims: list[ClaimEntry] | None = Field(
        default=None, description="With decoding.check or the strategy verify: the things that the answer names."
    )


class LogprobEntry(ChatCompletionTokenLogprob):
    """`logprob` is taken after the strategy, before penalties and temperature."""

    grounding: float | None = Field(
        default=None, description="With decoding.grounding: log p(token | image) - log p(token | no image)."
    )
    changed: bool | None = Field(
        default=None,
        description="With decoding.trace: whether the strategy changed the likeliest token. null if unknown.",
    )


@dataclass(frozen=True, slots=True)
class LogprobFormatter:
    """Formats the log-probabilities of tokens with the fields that one request enables."""

    enabled: bool
    grounding: bool = False
    trace: bool = False

    def format_token(self, token: Token) -> list[LogprobEntry]:
        """Format the token's entry.

        Returns:
            One entry. None if logprobs are off, or for a token that has none.
        """
        if not self.enabled or not has_logprob(token):
            return []
        chosen = get_chosen_logprob(token)
        entry = LogprobEntry(
            token=chosen.text,
            bytes=list(chosen.bytes),
            logprob=get_finite_logprob(chosen),
            top_logprobs=[
                TopLogprob(token=top.text, bytes=list(top.bytes), logprob=get_finite_logprob(top)) for top in token.top
            ],
        )
        if self.grounding:
            entry.grounding = token.grounding
        if self.trace:
            entry.changed = token.changed
        return [entry]

    def dump_token(self, token: Token) -> list[bytes]:
        """Format the token's entry as JSON.

        A full response keeps these bytes. As objects, the entries of a long answer take hundreds of megabytes, and
        seconds of the event loop at its end.

        Returns:
            One entry, or none as `format_token`.
        """
        return [dump_json(entry).encode() for entry in self.format_token(token)]


def has_logprob(token: Token) -> bool:
    """Return whether a token has an entry in the log-probabilities.

    An end token that is not part of the answer has none. Neither has a token that the model did not generate.
    """
    return token.chosen is not None or (token.finish is None and token.id != NO_TOKEN)


def to_claim_entries(claims: Sequence[CheckedClaim], choice: int | None) -> list[ClaimEntry]:
    """Format claims.

    Args:
        claims: The claims of one choice.
        choice: Its index, or None if it is the only one.

    Returns:
        The entries. A field that was never set is absent from the JSON.
    """
    index = {} if choice is None else {"choice": choice}
    return [
        ClaimEntry.model_validate(
            {
                "text": claim.text,
                "start": claim.start,
                "end": claim.end,
                "question": claim.question,
                "probability": claim.probability,
                **({} if claim.action is None else {"action": claim.action}),
                **index,
            }
        )
        for claim in claims
    ]


def get_chosen_logprob(token: Token) -> TokenLogprob:
    """Return the log-probability of the token itself.

    Raises:
        EngineFailed: The engine returned the token without log-probabilities.
    """
    if token.chosen is None:
        raise EngineFailed("The engine returned a token without log-probabilities.")
    return token.chosen


def get_finite_logprob(token_logprob: TokenLogprob) -> float:
    """Replace the -inf of a token that a strategy masks by OpenAI's lowest log-probability."""
    return max(token_logprob.logprob, MIN_LOGPROB)


def to_completion_usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def dump_json(document: BaseModel) -> str:
    """Dump the fields that were set, including those set to null."""
    return document.model_dump_json(exclude_unset=True)


def to_json_fields(document: BaseModel) -> dict[str, Any]:
    """Convert a document to JSON values, without fields that were not set."""
    return document.model_dump(mode="json", by_alias=True, exclude_unset=True)


def join_entries(entries: Sequence[bytes]) -> orjson.Fragment:
    """Join JSON values to a list, which `orjson.dumps` copies without parsing it."""
    return orjson.Fragment(b"[" + b",".join(entries) + b"]")


def build_event(data: str, name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data, event=name, sep="\n")


def build_openapi_responses(document: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Describe the 200 response of a generating route for /openapi.json."""
    return {
        200: {
            "model": document,
            "description": "The full answer, or with `stream` its chunks.",
            "content": {"text/event-stream": {}},  # no schema: tools disagree whether it is of one event or of all
        }
    }
