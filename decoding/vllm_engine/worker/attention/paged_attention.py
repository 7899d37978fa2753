"""Keys and values in vLLM's paged KV cache, and the attention layers whose cache can be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

CPU_IMPL = "CPUAttentionBackendImpl"  # packs the elements of a block in its own order
# Classes of vLLM's attention with a cache of [blocks, kv heads, block size, 2 * head_dim].
READABLE_IMPLS = frozenset({CPU_IMPL, "FlashAttentionImpl"})
UNQUANTIZED = frozenset({"auto", "bfloat16", "float16", "float32"})  # types of the cache


def check_attention(layers: Iterable[Any], fuses_quantization: bool) -> None:
    """Check that attention can be computed a second time from the KV cache.

    Args:
        layers: vLLM's attention layers.
        fuses_quantization: Whether vLLM's compiler lets the attention quantize its output.

    Raises:
        ValueError: A layer has a feature that the second computation does not have.
    """
    if fuses_quantization:
        raise ValueError("vLLM's compiler fuses the attention with the quantization of its output")
    for layer in layers:
        impl = layer.impl
        if type(impl).__name__ not in READABLE_IMPLS:
            raise ValueError(f"the KV cache of {type(impl).__name__} has an unknown layout")
        unsupported = {
            "soft caps of the scores": bool(impl.logits_soft_cap),
            "attention sinks": impl.sinks is not None,
            "ALiBi": impl.alibi_slopes is not None,
            f"a KV cache of the type {impl.kv_cache_dtype}": impl.kv_cache_dtype not in UNQUANTIZED,
            "a KV cache of other layers": impl.kv_sharing_target_layer_name is not None,
            "an order that is not causal": impl.attn_type != "decoder",
        }
        for feature, is_used in unsupported.items():
            if is_used:
                raise ValueError(f"its attention uses {feature}")


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One call of a layer's attention, after vLLM has stored the keys and values of its tokens.

    Attributes:
        module: vLLM's attention layer.
        layer: Number of the layer, from 0.
        query: [tokens, heads, head_dim].
        cache_blocks: [blocks, kv heads, block size, 2 * head_dim] KV cache of the layer.
        block_table: [rows, blocks] blocks of each row.
        output: [tokens, heads, head_dim]. It may be changed in place.
    """

    module: Any
    layer: int
    query: Tensor
    cache_blocks: Tensor
    block_table: Tensor
    output: Tensor

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.module.impl.scale)

    def gather_keys_and_values(self, rows: Tensor, last: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Gather the keys and values of some rows.

        Args:
            rows: [n] rows of the step.
            last: [n] position of the last key of each row. Later ones are 0: their blocks may belong to another
                request.
            length: Keys to gather.

        Returns:
            [n, kv heads, length, head_dim] keys and values.
        """
        return gather_keys_and_values(self.module, self.cache_blocks, self.block_table[rows], last, length)

    def compute_scores(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Compute the scores of single tokens before mask and softmax.

        Args:
            tokens: [n] numbers among the tokens of the step.
            keys: [n, kv heads, keys, head_dim].

        Returns:
            [n, heads, keys].
        """
        # Heads that share a KV head are side by side: [n, kv heads, heads of each, head_dim].
        queries = torch.unflatten(self.query[tokens], 1, (keys.shape[1], -1))
        return (queries @ keys.mT).flatten(1, 2) * self.scale

    def compute_weights(self, scores: Tensor, positions: Tensor) -> Tensor:
        """Compute the attention weights of single tokens.

        Args:
            scores: [n, heads, keys].
            positions: [n] positions of the tokens.

        Returns:
            [n, heads, keys], in the type of the scores.
        """
        visible = self.build_mask(positions, scores.shape[-1])
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1, dtype=torch.float32)
        return weights.to(scores.dtype)

    def build_mask(self, positions: Tensor, length: int) -> Tensor:
        """Return [n, length] true for the keys that tokens at [n] positions see."""
        return build_mask(self.module.impl, positions, length)


def gather_keys_and_values(
    module: Any, cache_blocks: Tensor, block_table: Tensor, last: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Gather the keys and values of some rows. Those after the last one are 0.

    Args:
        module: vLLM's attention layer.
        cache_blocks: [blocks, kv heads, block size, 2 * head_dim] KV cache of the layer.
        block_table: [n, blocks] blocks of each row.
        last: [n] position of the last key of each row.
        length: Keys to gather.

    Returns:
        [n, kv heads, length, head_dim] keys and values.
    """
    block_size, head_dim = cache_blocks.shape[2], cache_blocks.shape[3] // 2
    # [n, blocks, kv heads, block size, 2 * head_dim]
    own = cache_blocks[block_table[:, : -(-length // block_size)].long()]
    if type(module.impl).__name__ == CPU_IMPL:
        halves = own.flatten(-2).chunk(2, dim=-1)  # [n, blocks, kv heads, block size * head_dim]
        orders = find_cpu_orders(block_size, head_dim, own.dtype, module.isa)
        parts = [
            torch.unflatten(half[..., order], -1, (block_size, head_dim))
            for half, order in zip(halves, orders, strict=True)
        ]
    else:
        parts = list(torch.split(own, head_dim, dim=-1))
    is_later = torch.arange(length, device=last.device) > last[:, None]
    keys, values = (
        part.transpose(1, 2).flatten(2, 3)[:, :, :length].masked_fill(is_later[:, None, :, None], 0) for part in parts
    )
    return keys, values


@cache
def find_cpu_orders(block_size: int, head_dim: int, dtype: torch.dtype, isa: str) -> tuple[Tensor, Tensor]:
    """Find the place of each element in a block of vLLM's CPU kernels, which pack keys and values in their own order.

    The kernel itself stores a block of numbers, digit by digit.

    Args:
        block_size: Tokens in a block.
        head_dim: Elements of a key.
        dtype: Type of the cache.
        isa: Name of vLLM's kernel.

    Returns:
        [block_size * head_dim] indices of the keys' elements and of the values' elements.
    """
    from vllm import _custom_ops as ops

    base, digits = 64, 3  # every type holds the digits exactly
    places = torch.zeros(2, block_size * head_dim, dtype=torch.long)
    for digit in range(digits):
        numbers = torch.arange(block_size * head_dim) // base**digit % base
        tokens = numbers.to(dtype).view(block_size, 1, head_dim)
        block = torch.zeros(1, 1, 2 * block_size, head_dim, dtype=dtype)
        keys, values = block.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(tokens, tokens, keys, values, torch.arange(block_size), isa)
        places += block.view(2, -1).long() * base**digit
    return places[0].argsort(), places[1].argsort()


def build_mask(impl: Any, positions: Tensor, length: int) -> Tensor:
    """Return [n, length] true for the keys that tokens see: those that are not later, within the layer's window.

    Args:
        impl: vLLM's implementation of the layer's attention.
        positions: [n] positions of the tokens.
        length: Number of keys.
    """
    window = impl.sliding_window  # a number on a CPU, else how far a token sees back and forward; -1 is no limit
    width = window if isinstance(window, int) else window[0] + 1
    distance = positions[:, None] - torch.arange(length, device=positions.device)
    return (distance >= 0) & (distance < width) if width > 0 else distance >= 0
