"""The documents of /v1/chat/completions: the openai package's own types, with `grounding` and the receipt added."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from time import time
from uuid import uuid4

from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from sse_starlette import ServerSentEvent

from decoding.answer import Reason, Token
from server.errors import Explanation
from server.letter import DONE, event
from server.logprobs import Entries, TokenLogprob
from server.receipt import Receipt
from server.reply import Reply
from server.wire import counted, to_json


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
class ChatLetter:
    model: str
    entries: Entries
    include_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, said: list[list[Token]], reply: Reply) -> str:
        choices = [self._choice(index, tokens, reply.ends[index].reason) for index, tokens in enumerate(said)]
        document = Completion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=counted(reply.usage),
            onlyseen=reply.receipt,
        )
        return to_json(document)

    async def events(self, reply: Reply) -> AsyncGenerator[ServerSentEvent, None]:
        async for chunk in self._chunks(reply):
            if self.include_usage:
                chunk.usage = None  # said on every chunk but the last
            elif reply.is_over and chunk.choices[0].finish_reason:
                chunk.onlyseen = reply.receipt
            yield event(to_json(chunk))
        if self.include_usage:
            last = self._chunk()
            last.usage, last.onlyseen = counted(reply.usage), reply.receipt
            yield event(to_json(last))
        yield event(DONE)

    def failed(self, explanation: Explanation) -> ServerSentEvent:
        return event(explanation.json, "error")

    async def _chunks(self, reply: Reply) -> AsyncGenerator[Chunk, None]:
        opened: set[int] = set()
        async for choice, token in reply.tokens():
            if choice not in opened:
                opened.add(choice)
                yield self._chunk(opening(choice))
            entries = self.entries.of(token)
            if token.text or entries:
                yield self._chunk(self._piece(choice, token, entries))
            if token.end is not None:
                yield self._chunk(ending(choice, token.end.reason))

    def _choice(self, index: int, tokens: list[Token], reason: Reason) -> Choice:
        entries = [entry for token in tokens for entry in self.entries.of(token)]
        text = "".join(token.text for token in tokens)
        return Choice(
            index=index,
            message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
            logprobs=Logprobs(content=entries, refusal=None) if self.entries.wanted else None,
            finish_reason=reason,
        )

    def _chunk(self, *choices: ChunkChoice) -> Chunk:
        return Chunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.model,
            choices=list(choices),
        )

    def _piece(self, index: int, token: Token, entries: list[TokenLogprob]) -> ChunkChoice:
        logprobs = ChunkLogprobs(content=entries, refusal=None) if self.entries.wanted else None
        return ChunkChoice(index=index, delta=ChoiceDelta(content=token.text), logprobs=logprobs, finish_reason=None)


def opening(index: int) -> ChunkChoice:
    delta = ChoiceDelta(role="assistant", content="", refusal=None)
    return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)


def ending(index: int, reason: Reason) -> ChunkChoice:
    return ChunkChoice(index=index, delta=ChoiceDelta(), logprobs=None, finish_reason=reason)
