"""Which tokens may come next, so that an answer keeps to its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from decoding.errors import BadRequest
from decoding.grammar import LIMITS, compiled, refused


class Constraints:
    """Makes them for one model. `vocab`: rows of its head; `eos`: tokens that end an answer."""

    def __init__(self, tokenizer: Any, vocab: int, eos: Sequence[int], device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.eos = list(eos)
        self.device = device

    def constraint(self, grammar: str) -> Constraint:
        """Raises: BadRequest: no answer of this model fits the grammar."""
        return Constraint(
            LLMatcher(self._tokens, compiled(grammar), log_level=0, limits=LIMITS), self.vocab, self.device
        )

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """Made when the first grammar comes: it reads the whole vocabulary."""
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.vocab, eos_token=self.eos)


class Constraint:
    """Of one answer, as far as it has come."""

    def __init__(self, matcher: LLMatcher, vocab: int, device: torch.device) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._device = device
        self.allowed = self._look()  # [vocab] bool

    def take(self, token: int) -> None:
        """Raises: BadRequest: the grammar is too complicated to go on with."""
        self._matcher.consume_token(token)
        self.allowed = self._look()

    def _look(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._refused()
        allowed = np.unpackbits(bits, count=self._vocab, bitorder="little").astype(bool)
        if not allowed.any() and not self._matcher.is_stopped():
            raise refused("no token of this model begins such an answer")
        return torch.from_numpy(allowed).to(self._device)

    def _refused(self) -> BadRequest:
        return refused(self._matcher.get_error() or "it is too complicated")
