"""Token masks that keep an answer within its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from decoding.text.grammar import LIMITS, InvalidSchema, compile_grammar


class GrammarCompiler:
    """Compiles grammars for one model. `vocab_size` counts the rows of the model's head."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = list(eos_token_ids)
        self.device = device

    def compile(self, grammar: str) -> GrammarMask:
        """Compile a grammar of `build_grammar`. Raises `InvalidSchema` if no answer of this model fits it."""
        matcher = LLMatcher(self._llg_tokenizer, compile_grammar(grammar), log_level=0, limits=LIMITS)
        return GrammarMask(matcher, self.vocab_size, self.device)

    @cached_property
    def _llg_tokenizer(self) -> LLTokenizer:
        # Built with the first grammar, because it reads the whole vocabulary.
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.vocab_size, eos_token=self.eos_token_ids)


class GrammarMask:
    """The tokens that a grammar allows next in one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, device: torch.device) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._device = device
        self.allowed = self._compute_mask()  # [vocab] bool

    def accept_token(self, token: int) -> None:
        """Advance by a token. Raises `InvalidSchema` if the grammar is too complicated to continue."""
        self._matcher.consume_token(token)
        self.allowed = self._compute_mask()

    def _compute_mask(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InvalidSchema(self._matcher.get_error() or "it is too complicated")
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        if not allowed.any() and not self._matcher.is_stopped():
            raise InvalidSchema("no token of this model begins such an answer")
        return torch.from_numpy(allowed).to(self._device)
