"""From what vLLM says of the main request to the tokens of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from decoding.answer import Token
from decoding.errors import EngineFailed, OnlySeenError, Overloaded
from decoding.saying import Ranked, Saying


class Answering:
    """One answer on its way. `rows`: the main one and its branches."""

    def __init__(self, saying: Saying, rows: int) -> None:
        self.saying = saying
        self.rows = rows

    @property
    def is_over(self) -> bool:
        return self.saying.is_over

    def read(self, output: Any) -> Iterator[Token]:
        """The tokens of one of vLLM's outputs; none comes after one with an end.

        Raises:
            EngineFailed: a strategy failed, or the gang came apart.
            Overloaded: there is no room for what it was to remember.
        """
        note: Mapping[str, Any] = output.kv_transfer_params or {}
        (said,) = output.outputs
        if "failed" in note or said.finish_reason == "error":
            raise failure(note)
        for number, token in enumerate(said.token_ids):
            logprobs = said.logprobs[number] if said.logprobs else None
            yield self._say(token, logprobs, note)
            if self.is_over:
                return
        if output.finished and not self.is_over:
            raise EngineFailed("The engine ended an answer without saying why.")

    def _say(self, token: int, logprobs: Mapping[int, Any] | None, note: Mapping[str, Any]) -> Token:
        self.saying.spent.forward_passes += self.rows
        changed = note.get("changed", False)
        if self.saying.ask.choices:
            return self.saying.weigh(token, changed, note["choices"])
        return self.saying.say(token, changed, self._ranked(token, logprobs, note), note.get("grounding"))

    def _ranked(self, token: int, logprobs: Mapping[int, Any] | None, note: Mapping[str, Any]) -> Ranked:
        wanted = self.saying.ask.sampling.top_logprobs
        if wanted is None or logprobs is None:
            return ()
        best = sorted(logprobs.items(), key=lambda entry: entry[1].rank)[:wanted]
        # Noted where it was not drawn: then vLLM may not have ranked it.
        own = note["logprob"] if "logprob" in note else logprobs[token].logprob
        return [(token, own), *((id_, entry.logprob) for id_, entry in best)]


def failure(note: Mapping[str, Any]) -> OnlySeenError:
    """With a code it is nobody's fault: the engine has too much to do."""
    message = note.get("failed", "The engine failed on this request.")
    return Overloaded(message, code=note["code"]) if "code" in note else EngineFailed(message)
