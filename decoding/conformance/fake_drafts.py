"""Fake drafts and answers for a strategy that reads its own answer (`Strategy.stream`)."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from decoding.drafts import DraftEffect, ReadDraft, Segment, SendTokens, StartDraft
from decoding.errors import StrategyFailed
from decoding.outputs import Answer, FinishInfo, Token, Usage
from decoding.pipeline.dry_run import QUESTION, build_fake_reply, create_blank_image
from decoding.pipeline.program import ProgramResult, start_program
from decoding.requests import GenerateRequest, Prompt
from decoding.strategy import Effect, Strategy

SENTENCES = ("There is a cat on the mat.", " A dog sits in front of a red car.", " The sky is blue.")
LIKELY = 0.9  # probability of the favoured text
MAX_EFFECTS = 1000


class FakeDrafts:
    """Replies to the effects of one `stream`, without an engine.

    Each draft has one sentence less than the one before, and at least one. Every token has its own id.

    Args:
        favours_first: Whether the first of a request's scored texts is the likeliest, or the last.
    """

    def __init__(self, favours_first: bool) -> None:
        self.favours_first = favours_first
        self._ids = itertools.count()
        self._num_drafts = 0
        self._draft: deque[Token] | None = None

    def run(self, strategy: Strategy) -> tuple[list[Any], Any]:
        """Run the text side.

        Returns:
            Its effects, with the `Segment` that each `ReadDraft` has read after it, and its outcome. The outcome is
            None if the text side does not end.
        """
        program, reply = (
            start_program(strategy, GenerateRequest(Prompt.from_text(QUESTION, create_blank_image()))),
            None,
        )
        effects: list[Any] = []
        for _ in range(MAX_EFFECTS):
            effect = program.advance(reply)
            if isinstance(effect, ProgramResult):
                return effects, effect.outcome
            reply = self._reply(strategy, effect)
            effects += [effect, reply] if isinstance(effect, ReadDraft) else [effect]
        program.close()
        return effects, None

    def _reply(self, strategy: Strategy, effect: Effect | DraftEffect) -> Any:
        match effect:
            case StartDraft():
                self._draft = self._generate()
                return None
            case ReadDraft():
                if self._draft is None:
                    raise StrategyFailed(strategy.name, "read a draft before it started one")
                return self._read(self._draft, effect)
            case list():
                return [self._answer(request) for request in effect]
            case _:
                return build_fake_reply(effect)

    def _generate(self) -> deque[Token]:
        sentences = SENTENCES[min(self._num_drafts, len(SENTENCES) - 1) :]
        self._num_drafts += 1
        words = "".join(sentences).split(" ")
        texts = [words[0], *(f" {word}" for word in words[1:])]
        tokens = deque(Token(next(self._ids), text) for text in texts)
        tokens.append(Token(next(self._ids), "", finish=FinishInfo("stop", Usage())))
        return tokens

    def _read(self, draft: deque[Token], effect: ReadDraft) -> Segment:
        tokens: list[Token] = []
        while draft:
            tokens.append(draft.popleft())
            if tokens[-1].text and effect.until("".join(token.text for token in tokens)):
                break
        return Segment(tuple(tokens), None if draft else "stop")

    def _answer(self, request: GenerateRequest) -> Answer:
        answer: Answer = build_fake_reply(request)
        if not request.scored_texts:
            return answer
        favoured = request.scored_texts[0 if self.favours_first else -1]
        rest = (1 - LIKELY) / max(1, len(request.scored_texts) - 1)
        logprobs = {text: math.log(LIKELY if text == favoured else rest) for text in request.scored_texts}
        return replace(answer, finish=replace(answer.finish, text_logprobs=logprobs))


def list_sent_tokens(effects: Sequence[Any]) -> list[Token]:
    """List the tokens that a client gets, from the effects of `FakeDrafts.run`."""
    sent: list[Token] = []
    for effect, following in zip(effects, [*effects[1:], None], strict=True):
        if isinstance(effect, SendTokens):
            sent += effect.tokens
        elif isinstance(effect, ReadDraft) and effect.send:
            sent += following.tokens
    return sent
