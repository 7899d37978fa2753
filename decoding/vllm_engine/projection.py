"""Puts a factor on every attention head of the model, just before its layer's output projection."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Tap(Protocol):
    """What acts on the head outputs in Python, where the model runs uncompiled."""

    def edit(self, layer: int, heads: Tensor) -> Tensor:
        """[tokens, heads, head_dim], which stays as it is -> what goes on to the projection."""
        ...

    @property
    def is_idle(self) -> bool: ...


class Scales:
    """Factors of the heads, by row of the step, in buffers of fixed shape and address.

    Compiled code and CUDA graphs read them where they are, so a step with other factors is neither compiled nor
    captured again. The row beyond the last is nobody's: its factors are 1, and between steps all tokens are its own.
    """

    def __init__(
        self, layers: int, heads: int, rows: int, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.nobody = rows
        self.factors = torch.ones(layers, rows + 1, heads, dtype=dtype, device=device)
        self.owners = torch.full((tokens,), rows, dtype=torch.long, device=device)  # the row of each of a step's tokens


class HeadProjection(nn.Module):
    """A layer's output projection, behind its heads' factors."""

    factors: Tensor
    owners: Tensor

    def __init__(self, projection: nn.Module, layer: int, scales: Scales, tap: Tap) -> None:
        super().__init__()
        self.projection = projection
        self.layer = layer
        self.heads = scales.factors.shape[-1]
        self.tap = tap
        self.register_buffer("factors", scales.factors[layer], persistent=False)
        self.register_buffer("owners", scales.owners, persistent=False)

    def forward(self, outputs: Tensor) -> Any:
        """`outputs`: [tokens, heads * head_dim]."""
        if torch.compiler.is_compiling():  # decided when the code is compiled: one that runs later cannot turn Python
            return self.projection(self.scaled(outputs.view(*outputs.shape[:-1], self.heads, -1)).flatten(-2))
        if self.tap.is_idle:
            return self.projection(outputs)
        heads = self.tap.edit(self.layer, self.scaled(outputs.view(*outputs.shape[:-1], self.heads, -1)))
        return self.projection(heads.flatten(-2))

    def scaled(self, heads: Tensor) -> Tensor:
        """[tokens, heads, head_dim] -> the same, each times the factor of its token's row."""
        return heads * self.factors.index_select(0, self.owners[: heads.shape[0]]).unsqueeze(-1)


def tapped(model: nn.Module, rows: int, tokens: int, dtype: torch.dtype, device: torch.device, tap: Tap) -> Scales:
    """Wrap the output projections of the language model's layers, before anything is compiled.

    The layers are told by vLLM's attention, which those of a vision tower do not have: they keep no cache.

    Raises:
        ValueError: the model has no layers of this kind, or their heads differ.
    """
    layers: list[Any] = [module for module in model.modules() if is_attention(module)]
    counts = {layer.attn.num_heads for layer in layers}
    if len(counts) != 1:
        raise ValueError(f"The heads of this model cannot be told apart: its layers have {sorted(counts)}.")
    scales = Scales(len(layers), counts.pop(), rows, tokens, dtype, device)
    for number, layer in enumerate(layers):
        layer.o_proj = HeadProjection(layer.o_proj, number, scales, tap)
    return scales


def is_attention(module: Any) -> bool:
    from vllm.model_executor.layers.attention import Attention

    return isinstance(getattr(module, "attn", None), Attention) and isinstance(
        getattr(module, "o_proj", None), nn.Module
    )
