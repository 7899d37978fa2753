"""From what vLLM says of the main request to the tokens of the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from decoding.answer import Alternative, End, Memory, Reason, Token, Usage
from decoding.ask import Ask
from decoding.errors import EngineFailed
from decoding.hf_engine.detokenizer import Detokenizer, Vocabulary


@dataclass(slots=True)
class Clock:
    """Seconds, by perf_counter."""

    arrived: float = field(default_factory=time.perf_counter)
    submitted: float = 0.0
    first_token: float = 0.0


class Answering:
    """One answer on its way. `rows`: the main one and its branches."""

    def __init__(
        self,
        ask: Ask,
        prompt_tokens: int,
        rows: int,
        room: int,
        eos: frozenset[int],
        words: Vocabulary,
        tokenizer: Any,
        memory: Memory | None,
    ) -> None:
        self.ask = ask
        self.prompt_tokens = prompt_tokens
        self.rows = rows
        self.room = room
        self.eos = eos
        self.words = words
        self.memory = memory
        self.detokenizer = Detokenizer(tokenizer, ask.sampling.stop)
        self.clock = Clock()
        self.steps = 0
        self.changed = 0
        self.acts_inside = any("heads" in strategy.hooks() for strategy in ask.stack)
        self.is_over = False

    def read(self, output: Any) -> Iterator[Token]:
        """The tokens of one of vLLM's outputs; none comes after one with an end.

        Raises:
            EngineFailed: a strategy failed, or the gang came apart.
        """
        note: Mapping[str, Any] = output.kv_transfer_params or {}
        (said,) = output.outputs
        if "failed" in note or said.finish_reason == "error":
            raise EngineFailed(note.get("failed", "The engine failed on this request."))
        for number, token in enumerate(said.token_ids):
            logprobs = said.logprobs[number] if said.logprobs else None
            yield self._say(token, logprobs, note)
            if self.is_over:
                return
        if output.finished and not self.is_over:
            raise EngineFailed("The engine ended an answer without saying why.")

    def _say(self, token: int, logprobs: Mapping[int, Any] | None, note: Mapping[str, Any]) -> Token:
        self.steps += 1
        self.changed += note.get("changed", False)
        self.clock.first_token = self.clock.first_token or time.perf_counter()
        if self.ask.choices:
            return Token(token, "", end=self._end("stop", note["choices"]))
        if token in self.eos and not self.ask.sampling.ignore_eos:
            return Token(token, self.detokenizer.flush(), end=self._end("stop"))
        text = self.detokenizer.push(token)
        reason: Reason | None = "stop" if self.detokenizer.stopped else "length" if self.steps >= self.room else None
        if reason == "length":
            text += self.detokenizer.flush()
        alternatives = self._alternatives(token, logprobs, note.get("logprob"))
        return Token(
            token,
            text,
            chosen=alternatives[0] if alternatives else None,
            top=alternatives[1:],
            grounding=note.get("grounding"),
            changed=None if self.acts_inside else note.get("changed", False),
            end=self._end(reason) if reason else None,
        )

    def _alternatives(
        self, token: int, logprobs: Mapping[int, Any] | None, forced: float | None
    ) -> tuple[Alternative, ...]:
        """The token itself, then the likeliest ones. `forced`: its log-probability where it was not drawn."""
        wanted = self.ask.sampling.top_logprobs
        if wanted is None or logprobs is None:
            return ()
        ranked = sorted(logprobs.items(), key=lambda entry: entry[1].rank)[:wanted]
        own = logprobs[token].logprob if forced is None else forced
        entries = [(token, own), *((id_, entry.logprob) for id_, entry in ranked)]
        return tuple(self.words.alternative(id_, logprob) for id_, logprob in entries)

    def _end(self, reason: Reason, choices: Mapping[str, float] | None = None) -> End:
        self.is_over = True
        now, clock = time.perf_counter(), self.clock
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.steps,
            steps=self.steps,
            forward_passes=self.steps * self.rows,
            changed_steps=None if self.acts_inside else self.changed,
            seconds={
                "queue": clock.submitted - clock.arrived,
                "prefill": clock.first_token - clock.submitted,
                "decode": now - clock.first_token,
            },
        )
        return End(reason, usage, memory=self.memory, choices=choices or {})
