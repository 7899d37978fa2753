"""Edit attention scores of single tokens of single rows, through transformers' `AttentionInterface`.

The pass itself runs `sdpa`, prompts included. Only the query rows of an edit are computed a second time, score by
score, and replace the output of `sdpa`. So every edit of these rows can be expressed, without a matrix of queries times
keys. Passes without an edit run the model's own attention.
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

ATTENTION_NAME = "onlyseen"
# Layer, [rows * tokens, heads, keys] scores, [rows * tokens, keys] true for keys that the mask leaves -> the scores,
# edited, and [rows * tokens, heads] factors of the outputs.
EditScores = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor | None]]
ObserveWeights = Callable[[int, Tensor], None]  # layer, [rows * tokens, heads, keys] attention weights


def keep_scores(_layer: int, scores: Tensor, _visible: Tensor) -> tuple[Tensor, None]:
    return scores, None


@dataclass(frozen=True, slots=True)
class AttentionEdit:
    """An edit of the attention of some rows of a pass, in every layer.

    Attributes:
        rows: [n] rows of the pass.
        tokens: [n, m] positions in the pass of each row's tokens.
        edit_scores: Function of the scores before mask and softmax. It also returns factors of the head outputs.
        observe_weights: Function that receives the weights after softmax.
    """

    rows: slice | Tensor
    tokens: Tensor
    edit_scores: EditScores = keep_scores
    observe_weights: ObserveWeights | None = None


class AttentionTap:
    """Replaces the decoder's attention function for single passes. It costs nothing in other passes."""

    def __init__(self, decoder: Any) -> None:
        AttentionInterface.register(ATTENTION_NAME, attention_forward)
        AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
        self._config = decoder.config
        self._edits: Sequence[AttentionEdit] = ()
        self._hidden_keys: Tensor | None = None  # [layers, rows, keys] true where a row does not see a key of a step
        for layer, block in enumerate(decoder.layers):
            block.self_attn.attention_tap = (self, layer)

    @contextmanager
    def edit(self, edits: Sequence[AttentionEdit], hidden_keys: Tensor | None = None) -> Iterator[None]:
        """Apply edits within the block.

        Args:
            edits: Edits of separate rows.
            hidden_keys: [layers, rows, keys] true where a row does not see a key. Only for passes over single tokens,
                and for those with a mask.
        """
        if not edits and hidden_keys is None:
            yield
            return
        implementation = self._config._attn_implementation
        self._edits, self._hidden_keys, self._config._attn_implementation = edits, hidden_keys, ATTENTION_NAME
        try:
            yield
        finally:
            self._edits, self._hidden_keys, self._config._attn_implementation = (), None, implementation

    def mask_keys(self, layer: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Add this layer's hidden keys to the mask of a pass.

        Args:
            layer: Number of the layer.
            mask: Additive [rows, 1, tokens, keys], or None.
            dtype: Type of a new mask.

        Returns:
            The mask for this layer.
        """
        if self._hidden_keys is None:
            return mask
        hidden = self._hidden_keys[layer][:, None, None]
        hidden = hidden if mask is None else hidden.to(mask.device)
        mask = hidden.new_zeros(hidden.shape, dtype=dtype) if mask is None else mask
        return mask.masked_fill(hidden, torch.finfo(dtype).min)

    def rewrite_rows(self, layer: int, output: Tensor, inputs: AttentionInputs) -> None:
        """Write the edited rows into `output`.

        Args:
            layer: Number of the layer.
            output: [rows, tokens, heads, head_dim] of the attention. It is changed.
            inputs: Inputs of the attention.
        """
        device = output.device
        for edit in self._edits:
            home = edit.tokens.device  # the first device of a model that is split over several
            rows = edit.rows if isinstance(edit.rows, slice) else edit.rows.to(device)
            tokens = edit.tokens.to(device)
            queries = inputs.query[rows].take_along_dim(tokens[:, None, :, None], 2)  # [n, heads, m, head_dim]
            scores = multiply_by_head(queries, inputs.key[rows].mT).transpose(1, 2) * inputs.scaling
            visible = inputs.find_visible_keys(rows, tokens).expand(*tokens.shape, -1).flatten(0, 1)
            edited_scores, gates = edit.edit_scores(layer, scores.flatten(0, 1).to(home), visible.to(home))
            masked = inputs.mask_scores(edited_scores.to(device).view_as(scores), rows, tokens)
            weights = masked.softmax(-1, dtype=torch.float32).to(output.dtype)  # [n, m, heads, keys]
            if edit.observe_weights is not None:
                edit.observe_weights(layer, weights.flatten(0, 1).to(home))
            edited = multiply_by_head(weights.transpose(1, 2), inputs.value[rows]).transpose(1, 2)
            if gates is not None:
                edited = edited * gates.to(device).view(*scores.shape[:-1], 1)
            output[torch.arange(len(output), device=device)[rows][:, None], tokens] = edited


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Inputs of one layer's attention.

    Attributes:
        query: [rows, heads, tokens, head_dim].
        key: [rows, kv heads, keys, head_dim].
        value: [rows, kv heads, keys, head_dim].
        mask: [rows, 1, tokens, keys]: true where visible, or 0 there and the least number elsewhere.
        scaling: Factor on the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float

    def find_visible_keys(self, rows: slice | Tensor, tokens: Tensor) -> Tensor:
        """Return [n, m, keys] true for the keys that the mask leaves to tokens, at positions [n, m] of [n] rows."""
        masked = self.mask_scores(self.query.new_zeros(*tokens.shape, 1, self.key.shape[2]), rows, tokens)
        return masked[:, :, 0] > torch.finfo(self.query.dtype).min

    def mask_scores(self, scores: Tensor, rows: slice | Tensor, tokens: Tensor) -> Tensor:
        """Mask the scores of some tokens. Without a mask, a token sees itself and those before it.

        Args:
            scores: [n, m, heads, keys].
            rows: [n] rows of the pass.
            tokens: [n, m] positions of the tokens.

        Returns:
            [n, m, heads, keys].
        """
        if self.mask is None:
            if self.query.shape[2] == 1:
                return scores
            is_later = torch.arange(scores.shape[-1], device=scores.device) > tokens[..., None]
            return scores.masked_fill(is_later[:, :, None], -torch.inf)
        masks = self.mask.expand(len(self.query), -1, -1, -1)[rows]
        mask = masks.take_along_dim(tokens[:, None, :, None], 2).transpose(1, 2)
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Run SDPA and the module's tap, with the signature of transformers' attention functions.

    Args:
        module: The attention layer.
        query: [rows, heads, tokens, head_dim].
        key: [rows, kv heads, keys, head_dim].
        value: [rows, kv heads, keys, head_dim].
        attention_mask: [rows, 1, tokens, keys], or None, as in `AttentionInputs`.
        **kwargs: Further arguments of transformers, with `scaling`.

    Returns:
        [rows, tokens, heads, head_dim], and None in place of the attention weights.
    """
    tap, layer = module.attention_tap  # type: ignore[misc]
    mask = tap.mask_keys(layer, attention_mask, query.dtype)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    tap.rewrite_rows(layer, output, AttentionInputs(query, key, value, mask, kwargs["scaling"]))
    return output, None


def multiply_by_head(by_head: Tensor, by_kv_head: Tensor) -> Tensor:
    """Multiply matrices where several heads share a KV head.

    Args:
        by_head: [n, heads, i, j].
        by_kv_head: [n, kv heads, j, k].

    Returns:
        [n, heads, i, k].
    """
    rows, heads, *_ = by_head.shape
    grouped = by_head.view(rows, by_kv_head.shape[1], -1, *by_head.shape[2:])
    return (grouped @ by_kv_head[:, :, None]).view(rows, heads, by_head.shape[2], -1)
