"""Edits attention scores of the newest token of single rows, through transformers' `AttentionInterface`.

The pass itself stays with `sdpa`, prompts included: only the one query row that an edit is about is computed a second
time, score by score, and takes the place of what `sdpa` made of it. So any edit of that row can be expressed, and no
matrix of queries times keys is ever held. Passes without an edit run the model's own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "onlyseen"
Notice = Callable[[int, Tensor], None]  # layer, [rows, heads, keys] what the newest token attends to
Change = Callable[[int, Tensor], Tensor]  # layer, [rows, heads, keys] scores -> the same, edited


def unchanged(_: int, scores: Tensor) -> Tensor:
    return scores


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to the attention of some rows of a pass, in every layer."""

    rows: slice | Tensor  # [n]
    last: Tensor  # [n] which of the pass's tokens is the newest of each of these rows
    change: Change = unchanged
    notice: Notice | None = None


class AttentionTap:
    """Free while nothing is asked of it: the model's attention is taken over for single passes."""

    def __init__(self, decoder: Any) -> None:
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        self._config = decoder.config
        self._edits: Sequence[Edit] = ()
        self._hidden: Tensor | None = None  # [layers, rows, keys] true where a row does not see a key of a step
        for layer, block in enumerate(decoder.layers):
            block.self_attn.attention_tap = (self, layer)

    @contextmanager
    def edited_by(self, edits: Sequence[Edit], hidden: Tensor | None = None) -> Iterator[None]:
        if not edits and hidden is None:
            yield
            return
        own = self._config._attn_implementation
        self._edits, self._hidden, self._config._attn_implementation = edits, hidden, NAME
        try:
            yield
        finally:
            self._edits, self._hidden, self._config._attn_implementation = (), None, own

    def hide(self, layer: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """`mask` with what single rows do not see in this layer; a step's, so there is one query a row."""
        if self._hidden is None:
            return mask
        hidden = self._hidden[layer][:, None, None]
        hidden = hidden if mask is None else hidden.to(mask.device)
        open_ = hidden.new_zeros(hidden.shape, dtype=dtype) if mask is None else mask
        return open_.masked_fill(hidden, torch.finfo(dtype).min)

    def look(self, layer: int, output: Tensor, looking: Looking) -> None:
        """Writes the edited rows into `output`, [rows, tokens, heads, head_dim]."""
        here = output.device
        for edit in self._edits:
            home = edit.last.device  # of a model that is spread over several devices the first
            rows, last = edit.rows if isinstance(edit.rows, slice) else edit.rows.to(here), edit.last.to(here)
            queries = looking.query[rows].take_along_dim(last[:, None, None, None], 2)  # [n, heads, 1, head_dim]
            scores = by_head(queries, looking.key[rows].mT)[:, :, 0] * looking.scaling
            scores = edit.change(layer, scores.to(home)).to(here)
            weights = looking.masked(scores, rows, last).softmax(-1, dtype=torch.float32).to(output.dtype)
            if edit.notice is not None:
                edit.notice(layer, weights.to(home))
            seen = by_head(weights[:, :, None], looking.value[rows])[:, :, 0]  # [n, heads, head_dim]
            numbers = torch.arange(len(output), device=here)[rows]
            output[numbers, last] = seen


@dataclass(frozen=True, slots=True)
class Looking:
    """What one layer's attention is given: queries by head, keys and values by the heads that share them."""

    query: Tensor  # [rows, heads, tokens, head_dim]
    key: Tensor  # [rows, kv heads, keys, head_dim]
    value: Tensor  # the same
    mask: Tensor | None  # [rows, 1, tokens, keys]: true where seen, or 0 there and the least number elsewhere
    scaling: float

    def masked(self, scores: Tensor, rows: slice | Tensor, last: Tensor) -> Tensor:
        """`scores`: [n, heads, keys] of the tokens `last`. Without a mask, a token sees itself and those before it."""
        if self.mask is None:
            if self.query.shape[2] == 1:
                return scores
            later = torch.arange(scores.shape[-1], device=scores.device) > last[:, None]
            return scores.masked_fill(later[:, None], -torch.inf)
        own = self.mask.expand(len(self.query), -1, -1, -1)[rows].take_along_dim(last[:, None, None, None], 2)[:, :, 0]
        return scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it."""
    tap, layer = module.attention_tap  # type: ignore[misc]
    mask = tap.hide(layer, attention_mask, query.dtype)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **others)
    tap.look(layer, output, Looking(query, key, value, mask, others["scaling"]))
    return output, None


def by_head(one: Tensor, other: Tensor) -> Tensor:
    """one @ other, where several heads of `one` share a head of `other`: [n, heads, ...] and [n, kv heads, ...]."""
    rows, heads, *_ = one.shape
    shared = one.view(rows, other.shape[1], -1, *one.shape[2:])
    return (shared @ other[:, :, None]).view(rows, heads, one.shape[2], -1)
