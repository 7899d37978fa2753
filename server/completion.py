"""The answers as OpenAI's documents: the openai package's own types, with `grounding` and the receipt added."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import time
from uuid import uuid4

from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_usage import CompletionUsage

from decoding.answer import Alternative, Reason, Token, Usage
from decoding.errors import EngineFailed
from server.receipt import Receipt

RULED_OUT = -9999.0


class TokenLogprob(ChatCompletionTokenLogprob):
    """`logprob` is the strategy's, before penalties and temperature."""

    grounding: float | None = None
    """log p(token | image) - log p(token | no image), where decoding.grounding asked for it."""

    changed: bool | None = None
    """Whether the strategy changed the likeliest token, where decoding.trace asked for it; null where it is unknown."""


class Logprobs(chat_completion.ChoiceLogprobs):
    content: list[TokenLogprob] | None = None  # type: ignore[assignment]


class Choice(chat_completion.Choice):
    logprobs: Logprobs | None = None


class Completion(ChatCompletion):
    choices: list[Choice]  # type: ignore[assignment]
    onlyseen: Receipt


class ChunkLogprobs(chat_completion_chunk.ChoiceLogprobs):
    content: list[TokenLogprob] | None = None  # type: ignore[assignment]


class ChunkChoice(chat_completion_chunk.Choice):
    logprobs: ChunkLogprobs | None = None


class Chunk(ChatCompletionChunk):
    """The last one has the receipt."""

    choices: list[ChunkChoice]  # type: ignore[assignment]
    onlyseen: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What all documents of one request share."""

    model: str
    logprobs: bool
    grounding: bool
    trace: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))

    def completion(self, choices: list[Choice], usage: Usage, receipt: Receipt) -> Completion:
        return Completion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=counted(usage),
            onlyseen=receipt,
        )

    def choice(self, index: int, tokens: list[Token], reason: Reason) -> Choice:
        entries = [entry for token in tokens for entry in self.entries(token)]
        return Choice(
            index=index,
            message=ChatCompletionMessage(
                role="assistant", content="".join(token.text for token in tokens), refusal=None
            ),
            logprobs=Logprobs(content=entries, refusal=None) if self.logprobs else None,
            finish_reason=reason,
        )

    def chunk(self, *choices: ChunkChoice) -> Chunk:
        return Chunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def opening(self, index: int) -> ChunkChoice:
        delta = ChoiceDelta(role="assistant", content="", refusal=None)
        return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def piece(self, index: int, token: Token) -> ChunkChoice:
        logprobs = ChunkLogprobs(content=self.entries(token), refusal=None) if self.logprobs else None
        return ChunkChoice(index=index, delta=ChoiceDelta(content=token.text), logprobs=logprobs, finish_reason=None)

    def ending(self, index: int, reason: Reason) -> ChunkChoice:
        return ChunkChoice(index=index, delta=ChoiceDelta(), logprobs=None, finish_reason=reason)

    def entries(self, token: Token) -> list[TokenLogprob]:
        """One, or none: for the token that ends an answer without being part of it, or where none is wanted."""
        if not self.logprobs or (token.chosen is None and token.end is not None):
            return []
        if token.chosen is None:
            raise EngineFailed("The engine left out log-probabilities.")
        entry = TokenLogprob(
            token=token.chosen.text,
            bytes=list(token.chosen.bytes),
            logprob=told(token.chosen),
            top_logprobs=[top(alternative) for alternative in token.top],
        )
        if self.grounding:
            entry.grounding = token.grounding
        if self.trace:
            entry.changed = token.changed
        return [entry]


def top(alternative: Alternative) -> TopLogprob:
    return TopLogprob(token=alternative.text, bytes=list(alternative.bytes), logprob=told(alternative))


def told(alternative: Alternative) -> float:
    """JSON has no -inf: a token that a strategy rules out has OpenAI's least log-probability."""
    return max(alternative.logprob, RULED_OUT)


def counted(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def to_json(document: Completion | Chunk) -> str:
    """Only what was set, nulls that were set included."""
    return document.model_dump_json(exclude_unset=True)
