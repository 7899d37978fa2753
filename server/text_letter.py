"""The documents of /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import accumulate
from time import time
from uuid import uuid4

from openai.types import Completion, CompletionChoice
from openai.types.completion_choice import Logprobs
from sse_starlette import ServerSentEvent

from decoding.answer import Token
from server.errors import Explanation
from server.letter import DONE, event
from server.logprobs import known, told
from server.receipt import Receipt
from server.reply import Reply
from server.wire import counted, to_json


class TextChoice(CompletionChoice):
    finish_reason: str | None = None  # type: ignore[assignment]
    """null on every chunk but a choice's last."""


class TextCompletion(Completion):
    """Whole answers and chunks look alike; the last chunk has the receipt."""

    choices: list[TextChoice]  # type: ignore[assignment]
    onlyseen: Receipt | None = None


@dataclass(frozen=True, slots=True)
class TextLetter:
    model: str
    logprobs: bool
    include_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, said: list[list[Token]], reply: Reply) -> str:
        choices = [self._choice(index, tokens, 0) for index, tokens in enumerate(said)]
        document = self._document(*choices)
        document.usage, document.onlyseen = counted(reply.usage), reply.receipt
        return to_json(document)

    async def events(self, reply: Reply) -> AsyncGenerator[ServerSentEvent, None]:
        lengths: dict[int, int] = {}
        async for choice, token in reply.tokens():
            chunk = self._document(self._choice(choice, [token], lengths.get(choice, 0)))
            lengths[choice] = lengths.get(choice, 0) + len(token.text)
            if self.include_usage:
                chunk.usage = None
            elif reply.is_over:
                chunk.onlyseen = reply.receipt
            if token.text or token.end or self.logprobs:
                yield event(to_json(chunk))
        if self.include_usage:
            last = self._document()
            last.usage, last.onlyseen = counted(reply.usage), reply.receipt
            yield event(to_json(last))
        yield event(DONE)

    def failed(self, explanation: Explanation) -> ServerSentEvent:
        return event(explanation.json, "error")

    def _document(self, *choices: TextChoice) -> TextCompletion:
        return TextCompletion(
            id=self.id, object="text_completion", created=self.created, model=self.model, choices=list(choices)
        )

    def _choice(self, index: int, tokens: list[Token], begins: int) -> TextChoice:
        """`begins`: characters of the choice that were said before."""
        end = tokens[-1].end
        return TextChoice(
            index=index,
            text="".join(token.text for token in tokens),
            logprobs=logprobs(tokens, begins) if self.logprobs else None,
            finish_reason=end.reason if end else None,
        )


def logprobs(tokens: list[Token], begins: int) -> Logprobs:
    """In parallel lists. The token that ends an answer without being part of it is left out."""
    ends = accumulate((len(token.text) for token in tokens), initial=begins)
    shown = [
        (known(token), token.top, at)
        for token, at in zip(tokens, ends, strict=False)
        if token.chosen is not None or token.end is None
    ]
    return Logprobs(
        tokens=[chosen.text for chosen, _, _ in shown],
        token_logprobs=[told(chosen) for chosen, _, _ in shown],
        top_logprobs=[{each.text: told(each) for each in (*top, chosen)} for chosen, top, _ in shown],
        text_offset=[at for _, _, at in shown],
    )
