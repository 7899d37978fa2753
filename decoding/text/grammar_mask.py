"""Token masks that keep an answer within its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from decoding.sampling_params import Grammar
from decoding.text.grammar import TOO_COMPLICATED, InvalidSchema
from decoding.text.grammar_check import compile_grammar


class GrammarCompiler:
    """Compiles grammars for one model. `vocab_size` counts the rows of the model's head.

    The compiled form of a grammar lives as long as the grammar, so that it is compiled once for all choices of a
    request.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = list(eos_token_ids)
        self.device = device
        self._first_masks: WeakKeyDictionary[Grammar, GrammarMask] = WeakKeyDictionary()

    def compile(self, grammar: Grammar) -> None:
        """Compile a grammar, unless this was done. Raises `InvalidSchema` if no answer of this model fits it."""
        if grammar not in self._first_masks:
            ll_matcher = compile_grammar(self.llg_tokenizer, grammar.text)
            self._first_masks[grammar] = GrammarMask(ll_matcher, self.vocab_size, self.device)

    def create_mask(self, grammar: Grammar) -> GrammarMask:
        """Return the mask of a new answer. Raises `InvalidSchema` if no answer of this model fits the grammar."""
        self.compile(grammar)
        return self._first_masks[grammar].copy()

    def accepts(self, grammar: Grammar, token_ids: Sequence[int]) -> bool:
        """Return whether the tokens, without an end token, are a complete answer."""
        self.compile(grammar)
        return self._first_masks[grammar].accepts(token_ids)

    def begins(self, grammar: Grammar, token_ids: Sequence[int]) -> bool:
        """Return whether an answer can begin with the tokens."""
        self.compile(grammar)
        return self._first_masks[grammar].begins(token_ids)

    @cached_property
    def llg_tokenizer(self) -> LLTokenizer:
        """The model's tokens. They are read with the first grammar, because this takes up to a second."""
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.vocab_size, eos_token=self.eos_token_ids)


class GrammarMask:
    """The tokens that a grammar allows next in one answer.

    Attributes:
        allowed: [vocab] bool.
    """

    def __init__(
        self, ll_matcher: LLMatcher, vocab_size: int, device: torch.device, allowed: Tensor | None = None
    ) -> None:
        """Create the mask of an answer.

        Args:
            ll_matcher: The compiled grammar, with the tokens of the answer so far.
            vocab_size: Rows of the model's head.
            device: Device of the mask.
            allowed: [vocab] bool, the tokens that the `LLMatcher` allows; None: they are computed.
        """
        self._ll_matcher = ll_matcher
        self._vocab_size = vocab_size
        self._device = device
        self.allowed = self._compute_mask() if allowed is None else allowed

    def copy(self) -> GrammarMask:
        """Return the mask of another answer with the same tokens so far. The answers share the automaton."""
        return GrammarMask(self._ll_matcher.deep_copy(), self._vocab_size, self._device, self.allowed)

    def accepts(self, token_ids: Sequence[int]) -> bool:
        """Return whether the answer is complete after more tokens. The mask does not change."""
        ll_matcher = self._ll_matcher.deep_copy()
        return ll_matcher.consume_tokens(list(token_ids)) and ll_matcher.is_accepting()

    def begins(self, token_ids: Sequence[int]) -> bool:
        """Return whether the answer can continue with the tokens. The mask does not change."""
        return self._ll_matcher.deep_copy().consume_tokens(list(token_ids))

    def accept_token(self, token: int) -> None:
        """Advance by a token. Raises `InvalidSchema` if the grammar is too complicated to continue."""
        self._ll_matcher.consume_token(token)
        self.allowed = self._compute_mask()

    def _compute_mask(self) -> Tensor:
        bits = np.frombuffer(self._ll_matcher.compute_bitmask(), dtype=np.uint8)
        if self._ll_matcher.is_error():
            raise InvalidSchema(self._ll_matcher.get_error() or TOO_COMPLICATED)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        if not allowed.any() and not self._ll_matcher.is_stopped():
            raise InvalidSchema("no token of this model begins such an answer")
        return torch.from_numpy(allowed).to(self._device)
