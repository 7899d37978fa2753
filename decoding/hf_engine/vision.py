"""What a vision tower's class token attends to, layer by layer, through transformers' `AttentionInterface`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from decoding.hf_engine.attention import NAME, Looking, by_head


class VisionTap:
    """For towers with a class token before the patches, and a token of the language model for each patch."""

    def __init__(self, tower: Any) -> None:
        self._config = tower.config
        self._seen: list[Tensor] = []  # of each layer that has run in this pass
        for layer, block in enumerate(tower.encoder.layers):
            block.self_attn.attention_tap = (self, layer)

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Around a pass. The result fills as the tower runs: for each of its layers [pictures, heads, patches].

        That is the share of the class token's attention that each patch of each picture of the pass got.
        """
        own = self._config._attn_implementation
        self._seen, self._config._attn_implementation = [], NAME
        try:
            yield self._seen
        finally:
            self._seen, self._config._attn_implementation = [], own

    def hide(self, layer: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return mask

    def look(self, layer: int, output: Tensor, looking: Looking) -> None:
        scores = by_head(looking.query[:, :, :1], looking.key.mT)[:, :, 0] * looking.scaling
        self._seen.append(scores.softmax(-1, dtype=torch.float32)[..., 1:])
