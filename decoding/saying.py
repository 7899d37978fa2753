"""An answer as it is said: its tokens as text, why it ends, and what it has cost. Which tokens, the engine knows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding.answer import End, Memory, Reason, Token, Usage
from decoding.ask import Ask
from decoding.detokenizer import Detokenizer, Vocabulary
from decoding.encoder import Encoded

CONTEXT = 8  # tokens of a bare prompt that its continuation is spelled after
Ranked = Sequence[tuple[int, float]]  # tokens and their log-probabilities


@dataclass(slots=True)
class Spent:
    """Moments are those of perf_counter."""

    forward_passes: int = 0
    steps: int = 0
    changed_steps: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0


class Saying:
    """Of one ask. `room`: most tokens of the answer; `memory`: what its digest will have left when it ends."""

    def __init__(
        self,
        ask: Ask,
        prompt: Encoded,
        room: int,
        eos: frozenset[int],
        words: Vocabulary,
        tokenizer: Any,
        memory: Memory | None = None,
    ) -> None:
        self.ask = ask
        self.prompt_tokens = len(prompt)
        self.room = room
        self.eos = eos
        self.words = words
        self.memory = memory
        after = prompt.ids[-CONTEXT:].tolist() if ask.prompt.bare else []
        self.detokenizer = Detokenizer(tokenizer, ask.sampling.stop, after, ask.sampling.min_tokens)
        self.acts_inside = any({"heads", "attend"} & strategy.hooks() for strategy in ask.stack)
        self.spent = Spent()
        self.is_over = False

    def say(self, token: int, changed: bool, ranked: Ranked = (), grounding: float | None = None) -> Token:
        """`ranked`: the token itself, then the likeliest ones; nothing where no log-probabilities were asked for."""
        self._count(changed)
        if token in self.eos and not self.ask.sampling.ignore_eos:
            return Token(token, self.detokenizer.flush(), end=self._end("stop"))
        text, reason = self.detokenizer.push(token), self._reason()
        if reason == "length":
            text += self.detokenizer.flush()
        begins = self.spent.steps == 1 and not self.ask.prompt.bare
        alternatives = tuple(self.words.alternative(id_, logprob, begins=begins) for id_, logprob in ranked)
        return Token(
            token,
            text,
            chosen=alternatives[0] if alternatives else None,
            top=alternatives[1:],
            grounding=grounding,
            changed=None if self.acts_inside else changed,
            end=self._end(reason) if reason else None,
        )

    def weigh(self, token: int, changed: bool, choices: Mapping[str, float]) -> Token:
        """The whole answer of an ask for choices: their log-probabilities."""
        self._count(changed)
        return Token(token, "", end=self._end("stop", choices))

    def _count(self, changed: bool) -> None:
        self.spent.steps += 1
        self.spent.changed_steps += changed
        self.spent.first_token = self.spent.first_token or time.perf_counter()

    def _reason(self) -> Reason | None:
        if self.detokenizer.stopped:
            return "stop"
        return "length" if self.spent.steps >= self.room else None

    def _end(self, reason: Reason, choices: Mapping[str, float] | None = None) -> End:
        self.is_over = True
        now, spent = time.perf_counter(), self.spent
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=spent.steps,
            steps=spent.steps,
            forward_passes=spent.forward_passes,
            changed_steps=None if self.acts_inside else spent.changed_steps,
            seconds={
                "queue": spent.started - spent.arrived,
                "prefill": spent.first_token - spent.started,
                "decode": now - spent.first_token,
            },
        )
        return End(reason, usage, self.memory, choices or {})
