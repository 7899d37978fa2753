"""Which tokens may come next, so that an answer keeps to its grammar."""

from __future__ import annotations

from functools import cached_property

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from decoding.errors import BadRequest
from decoding.grammar import compiled, refused
from decoding.hf_engine.model import Model


class Constraints:
    """Makes them for one model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def constraint(self, grammar: str) -> Constraint:
        """Raises: BadRequest: no answer of this model fits the grammar."""
        return Constraint(LLMatcher(self._tokens, compiled(grammar), log_level=0), self.model)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """Made when the first grammar comes: it reads the whole vocabulary."""
        model = self.model
        return llguidance.hf.from_tokenizer(model.encoder.tokenizer, n_vocab=model.vocab, eos_token=model.eos.tolist())


class Constraint:
    """Of one answer, as far as it has come."""

    def __init__(self, matcher: LLMatcher, model: Model) -> None:
        self._matcher = matcher
        self._vocab = model.vocab
        self._device = model.device
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
