"""Scale the outputs of the attention heads, right before the output projection of each layer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decoding.vllm_engine.worker.attention_layers import has_attention


class HeadOutputEditor(Protocol):
    """Python code that reads and edits the head outputs, in steps that run uncompiled."""

    def edit(self, layer: int, heads: Tensor) -> Tensor:
        """Return the [tokens, heads, head_dim] outputs that go on to the projection.

        `heads` is a copy, which may be changed in place and returned.
        """
        ...

    @property
    def is_idle(self) -> bool: ...


class HeadScaleBuffers:
    """Head scales by row, in buffers with fixed shapes and addresses.

    Compiled code and CUDA graphs read the buffers in place. A step with other scales needs no compilation or capture.
    The row after the last one, `unscaled_row`, has scales of 1. Between steps all tokens refer to it.

    Attributes:
        scales: [layers, max_rows + 1, heads].
        token_rows: [max_tokens] row of each token of the step.
    """

    def __init__(
        self, num_layers: int, num_heads: int, max_rows: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.unscaled_row = max_rows
        self.scales = torch.ones(num_layers, max_rows + 1, num_heads, dtype=dtype, device=device)
        self.token_rows = torch.full((max_tokens,), max_rows, dtype=torch.long, device=device)


class ScaledHeadProjection(nn.Module):
    """The output projection of a layer, after the scales of its heads."""

    scales: Tensor
    token_rows: Tensor

    def __init__(self, projection: nn.Module, layer: int, buffers: HeadScaleBuffers, tap: HeadOutputEditor) -> None:
        super().__init__()
        self.projection = projection
        self.layer = layer
        self.heads = buffers.scales.shape[-1]
        self.tap = tap
        self.register_buffer("scales", buffers.scales[layer], persistent=False)
        self.register_buffer("token_rows", buffers.token_rows, persistent=False)

    def forward(self, outputs: Tensor) -> Any:
        """Scale and project the head outputs.

        Args:
            outputs: [tokens, heads * head_dim].

        Returns:
            Whatever the layer's own projection returns.
        """
        if torch.compiler.is_compiling():  # compiled code cannot branch on Python state later, so that it always scales
            return self.projection(self._scale(outputs.view(*outputs.shape[:-1], self.heads, -1)).flatten(-2))
        if self.tap.is_idle:
            return self.projection(outputs)
        heads = self.tap.edit(self.layer, self._scale(outputs.view(*outputs.shape[:-1], self.heads, -1)))
        return self.projection(heads.flatten(-2))

    def _scale(self, heads: Tensor) -> Tensor:
        """Multiply [tokens, heads, head_dim] by the scales of each token's row."""
        return heads * self.scales.index_select(0, self.token_rows[: heads.shape[0]]).unsqueeze(-1)


def install(
    model: nn.Module, max_rows: int, max_tokens: int, dtype: torch.dtype, device: torch.device, tap: HeadOutputEditor
) -> HeadScaleBuffers:
    """Wrap the output projections of the language model's layers, before anything is compiled.

    Layers are recognised by vLLM's attention with a KV cache, which the layers of a vision tower do not have.

    Args:
        model: Loaded model.
        max_rows: Most rows in a step.
        max_tokens: Most tokens in a step.
        dtype: Type of the head outputs.
        device: Device of the model.
        tap: Receives the head outputs in steps that run uncompiled.

    Returns:
        The buffers, all scales 1.

    Raises:
        ValueError: The model has no such layers, or they differ in the number of heads.
    """
    layers: list[Any] = [module for module in model.modules() if has_attention(module)]
    counts = {layer.attn.num_heads for layer in layers}
    if len(counts) != 1:
        raise ValueError(f"the layers do not have one number of heads: {sorted(counts)}")
    buffers = HeadScaleBuffers(len(layers), counts.pop(), max_rows, max_tokens, dtype, device)
    for number, layer in enumerate(layers):
        layer.o_proj = ScaledHeadProjection(layer.o_proj, number, buffers, tap)
    return buffers
