"""Turn vLLM's outputs of the main request into the tokens of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from decoding.errors import NO_FINISH_REASON, EngineFailed, Overloaded, StrategyFailed
from decoding.outputs import PromptScores, Token
from decoding.text.detokenizer import OutputProcessor, RankedTokens
from decoding.text.grammar import TOO_COMPLICATED, InvalidSchema


class OutputParser:
    """Parses the outputs of one request.

    Args:
        processor: Builds the tokens.
        rows: Rows of the request: the main one and its branches.

    Attributes:
        token_ids: Generated tokens of the answer so far, an end token included.
        has_ended: Whether vLLM has ended the request.
    """

    def __init__(self, processor: OutputProcessor, rows: int) -> None:
        self.processor = processor
        self.rows = rows
        self.token_ids: list[int] = []
        self.has_ended = False

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended."""
        return self.processor.is_finished

    def parse(self, output: Any) -> Iterator[Token]:
        """Parse one output.

        Args:
            output: vLLM's RequestOutput. Its `kv_transfer_params`, which are free because KV connectors are refused,
                hold the information about the token.

        Yields:
            The tokens. None follows a token with a finish reason.

        Raises:
            EngineFailed: The output ends the answer without a finish reason.
            InvalidSchema: The grammar is too complicated to continue.
        """
        info: Mapping[str, Any] = output.kv_transfer_params or {}
        (completion,) = output.outputs
        self.has_ended |= output.finished
        has_failed = completion.finish_reason == "error"
        # An error with a token: the grammar does not accept it. The last token of an answer need not be accepted.
        has_grammar = self.processor.request.sampling.grammar is not None
        is_rejected = has_failed and has_grammar and bool(completion.token_ids)
        raise_failure(info, has_failed=has_failed and not is_rejected)
        for number, token in enumerate(completion.token_ids):
            logprobs = completion.logprobs[number] if completion.logprobs else None
            if self.processor.request.prompt_logprobs is not None:
                self.processor.stats.forward_passes += self.rows
                self.token_ids.append(token)
                yield self.processor.add_prompt_logprobs(token, to_prompt_scores(output.prompt_logprobs))
                return
            yield self._add_token(token, logprobs, info)
            if self.is_finished:
                return
        if is_rejected:
            raise InvalidSchema(TOO_COMPLICATED)
        if output.finished and not self.is_finished:
            raise EngineFailed(NO_FINISH_REASON)

    def _add_token(self, token: int, logprobs: Mapping[int, Any] | None, info: Mapping[str, Any]) -> Token:
        self.processor.stats.forward_passes += self.rows
        self.token_ids.append(token)
        changed = info.get("changed", False)
        if self.processor.request.scored_texts:
            return self.processor.add_text_logprobs(token, changed, info["text_logprobs"])
        return self.processor.add_token(token, changed, self._rank(token, logprobs, info), info.get("grounding"))

    def _rank(self, token: int, logprobs: Mapping[int, Any] | None, info: Mapping[str, Any]) -> RankedTokens:
        """Return the token itself and the likeliest tokens, with their log-probabilities."""
        count = self.processor.request.sampling.top_logprobs
        if count is None or logprobs is None:
            return ()
        best = sorted(logprobs.items(), key=lambda entry: entry[1].rank)[:count]
        # A forced token was not sampled, so that vLLM may not have ranked it.
        own = info["logprob"] if "logprob" in info else logprobs[token].logprob
        return [(token, own), *((id_, entry.logprob) for id_, entry in best)]


def to_prompt_scores(logprobs: Any) -> PromptScores:
    """Convert vLLM's FlatLogprobs of a prompt. Each position but the first has the token itself, then the likeliest."""
    positions = len(logprobs) - 1
    ids = np.array(logprobs.token_ids, dtype=np.int64).reshape(positions, -1)
    values = np.array(logprobs.logprobs, dtype=np.float32).reshape(positions, -1)
    ranks = np.array(logprobs.ranks, dtype=np.int64).reshape(positions, -1)
    return PromptScores(values[:, 0], ranks[:, 0], ids[:, 1:], values[:, 1:])


def raise_failure(info: Mapping[str, Any], has_failed: bool = False) -> None:
    """Raise the failure that the worker recorded, if there is one. A failure with a code is `Overloaded`.

    Args:
        info: Information about a token.
        has_failed: Whether vLLM reports a failure.

    Raises:
        EngineFailed: The engine failed.
        Overloaded: The engine has no memory for a strategy state.
        StrategyFailed: A strategy failed.
    """
    if "error" not in info and not has_failed:
        return
    if "strategy" in info:
        raise StrategyFailed(info["strategy"], info["problem"])
    message = info.get("error", "The engine failed on this request.")
    if "error_code" in info:
        raise Overloaded(message, code=info["error_code"])
    raise EngineFailed(message)
