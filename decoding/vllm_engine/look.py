"""A probe on its way through the layers of the model: what its prompts' last tokens show becomes a memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from decoding.strategy import Captured, Tensors
from decoding.vllm_engine.member import Probing
from decoding.vllm_engine.rows import Rows


class Look:
    """`places`: prompt name -> row. All prompts run whole in this step, so that every layer sees all their last tokens,
    and its factors reach all tokens of the main prompt before the next layer runs."""

    def __init__(self, probing: Probing, places: Mapping[str, int], rows: Rows, layers: int) -> None:
        self.probing = probing
        self.owner = probing.owner.build()
        self.layers = layers
        self.request = rows.ids[places[probing.main]]
        self.memory: Tensors = {}
        self.failure: Exception | None = None
        self._last = {name: int(rows.starts[row + 1]) - 1 for name, row in places.items()}
        self._main = slice(*(int(rows.starts[places[probing.main] + end]) for end in (0, 1)))

    def at(self, layer: int, heads: Tensor) -> None:
        """Digest a layer's head outputs, [tokens, heads, head_dim], and scale those of the main prompt in place."""
        if self.failure is not None:
            return
        try:
            captured = {name: heads[token].clone() for name, token in self._last.items()}
            self.memory = self.owner.digest(self.memory, Captured(heads=captured, layer=layer, layers=self.layers))
            factors = self.owner.heads(self.memory) if self.probing.layerwise else None
        except Exception as error:  # the strategy's fault, which must not end the others' answers
            self.failure = error
            return
        if factors is not None:
            heads[self._main] *= factors[layer, :, None].to(heads)
