"""Log-probabilities of tokens, with what `decoding` asks to be told of them."""

from __future__ import annotations

from dataclasses import dataclass

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from decoding.answer import Alternative, Token
from decoding.errors import EngineFailed

RULED_OUT = -9999.0


class TokenLogprob(ChatCompletionTokenLogprob):
    """`logprob` is the strategy's, before penalties and temperature."""

    grounding: float | None = None
    """log p(token | image) - log p(token | no image), where decoding.grounding asked for it."""

    changed: bool | None = None
    """Whether the strategy changed the likeliest token, where decoding.trace asked for it; null where it is unknown."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What one request wants to be told of its tokens."""

    wanted: bool
    grounding: bool = False
    trace: bool = False

    def of(self, token: Token) -> list[TokenLogprob]:
        """One, or none: for the token that ends an answer without being part of it, or where none is wanted."""
        if not self.wanted or (token.chosen is None and token.end is not None):
            return []
        chosen = known(token)
        entry = TokenLogprob(
            token=chosen.text,
            bytes=list(chosen.bytes),
            logprob=told(chosen),
            top_logprobs=[top(alternative) for alternative in token.top],
        )
        if self.grounding:
            entry.grounding = token.grounding
        if self.trace:
            entry.changed = token.changed
        return [entry]


def known(token: Token) -> Alternative:
    if token.chosen is None:
        raise EngineFailed("The engine left out log-probabilities.")
    return token.chosen


def top(alternative: Alternative) -> TopLogprob:
    return TopLogprob(token=alternative.text, bytes=list(alternative.bytes), logprob=told(alternative))


def told(alternative: Alternative) -> float:
    """JSON has no -inf: a token that a strategy rules out has OpenAI's least log-probability."""
    return max(alternative.logprob, RULED_OUT)
