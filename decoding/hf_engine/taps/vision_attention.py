"""Capture the attention of a vision tower's class token through transformers' `AttentionInterface`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.hf_engine.taps.attention import ATTENTION_NAME, AttentionInputs, multiply_by_head


class VisionAttentionTap:
    """For towers with a class token before the patches, and one token of the language model for each patch."""

    def __init__(self, tower: Any) -> None:
        self._config = tower.config
        self._captured: list[Tensor] = []  # from each layer that has run in this pass
        for layer, block in enumerate(tower.encoder.layers):
            block.self_attn.attention_tap = (self, layer)

    @contextmanager
    def capture(self) -> Iterator[list[Tensor]]:
        """Capture the class token's attention during a pass.

        Yields:
            For each layer of the tower [images, heads, patches]: the share of the class token's attention that each
            patch receives. The list fills while the tower runs.
        """
        implementation = self._config._attn_implementation
        self._captured, self._config._attn_implementation = [], ATTENTION_NAME
        try:
            yield self._captured
        finally:
            self._captured, self._config._attn_implementation = [], implementation

    def mask_keys(self, layer: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the mask, [images, 1, tokens, tokens] or None, as it is."""
        return mask

    def rewrite_rows(self, layer: int, output: Tensor, inputs: AttentionInputs) -> None:
        """Record the class token's attention to the patches, [images, heads, patches].

        Args:
            layer: Number of the layer.
            output: [images, tokens, heads, head_dim] of the attention. It stays as it is.
            inputs: Inputs of the attention, with the class token before the patches.
        """
        scores = multiply_by_head(inputs.query[:, :, :1], inputs.key.mT)[:, :, 0] * inputs.scaling
        self._captured.append(scores.softmax(-1, dtype=torch.float32)[..., 1:])
