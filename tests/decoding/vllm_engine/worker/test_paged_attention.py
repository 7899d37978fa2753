"""vLLM's paged KV cache, and the attention layers whose cache can be read."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decoding.vllm_engine.worker.attention.paged_attention import (
    CPU_IMPL,
    build_mask,
    check_attention,
    gather_keys_and_values,
)
from tests.decoding.vllm_engine.worker.harness import FlashAttentionImpl


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("logits_soft_cap", 50.0, "soft caps"),
        ("sinks", torch.zeros(1), "attention sinks"),
        ("alibi_slopes", [1.0], "ALiBi"),
        ("kv_cache_dtype", "fp8_e4m3", "a KV cache of the type fp8_e4m3"),
        ("kv_sharing_target_layer_name", "other", "of other layers"),
        ("attn_type", "encoder_only", "not causal"),
    ],
)
def test_attention_with_another_feature_is_refused(attribute: str, value: object, reason: str) -> None:
    impl = FlashAttentionImpl()
    check_attention([SimpleNamespace(impl=impl)], fuses_quantization=False)
    with pytest.raises(ValueError, match="fuses the attention"):
        check_attention([SimpleNamespace(impl=impl)], fuses_quantization=True)
    setattr(impl, attribute, value)
    with pytest.raises(ValueError, match=reason):
        check_attention([SimpleNamespace(impl=impl)], fuses_quantization=False)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="the KV cache of SimpleNamespace has an unknown layout"):
        check_attention([SimpleNamespace(impl=SimpleNamespace())], fuses_quantization=False)


def test_mask_has_the_window_of_the_layer() -> None:
    assert build_mask(SimpleNamespace(sliding_window=-1), torch.tensor([2]), 5).tolist() == [[True] * 3 + [False] * 2]
    for window in (2, (1, 0)):  # of the CPU backend, and of others
        mask = build_mask(SimpleNamespace(sliding_window=window), torch.tensor([2]), 5)
        assert mask.tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "block_size"), [(32, 32), (64, 32), (128, 128), (80, 16)])
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own")
def test_gathered_keys_and_values_are_those_that_the_kernel_stored(
    dtype: torch.dtype, head_dim: int, block_size: int
) -> None:
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    length, kv_heads, blocks = 2 * block_size + 3, 2, 5
    layer: Any = SimpleNamespace(impl=type(CPU_IMPL, (), {})(), isa=_get_attn_isa(dtype, block_size, head_dim, "auto"))
    keys, values = (torch.randn(length, kv_heads, head_dim).to(dtype) for _ in range(2))
    cache = torch.zeros(blocks, kv_heads, block_size, 2 * head_dim, dtype=dtype)
    table = torch.tensor([[4, 1, 2], [0, 0, 0]], dtype=torch.int32)
    slots = (table[0].long()[:, None] * block_size + torch.arange(block_size)).flatten()[:length]
    halves = cache.view(blocks, kv_heads, 2 * block_size, head_dim).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, *halves, slots, layer.isa)
    positions = torch.tensor([length - 1, 1])
    found_keys, found_values = gather_keys_and_values(layer, cache, table, positions, length)
    assert found_keys.shape == (2, kv_heads, length, head_dim)
    assert torch.equal(found_keys[0], keys.transpose(0, 1))
    assert torch.equal(found_values[0], values.transpose(0, 1))
    assert not found_keys[1, :, 2:].any()
    assert not found_values[1, :, 2:].any()
