"""Edits of attention on vLLM. The tests of parity, pressure, families and compiled models cover them, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decoding.vllm_engine.worker.paged_attention import CPU_IMPL, gather_keys_and_values
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.scenes import generate_all, get_token_ids, load_prompts

TOKENS = 24


async def test_edited_keys_and_values_are_not_shared(roomy_engine: Any, hf_engine: Any) -> None:
    """A prompt that ends with an answer runs next to the request of that answer, and after it."""
    (prompt,) = load_prompts(1)
    strong = build_stack("pai", pai={"alpha": 4.0, "gamma": 1.0, "first_layer": 0})
    stacks = [build_stack("plain"), strong, build_stack("pai"), build_stack("pai+vhr")]
    requests = [(stack, prompt) for stack in stacks * 2]
    expected = await generate_all(hf_engine, requests, TOKENS)
    longer = prompt.with_question(f"{prompt.question} {expected[1].text}")
    continued = [(stack, longer) for stack in stacks]
    expected += await generate_all(hf_engine, continued, TOKENS)
    assert len({tuple(get_token_ids(each)) for each in expected[: len(stacks)]}) >= 3
    for _ in range(2):
        actual = await generate_all(roomy_engine, requests, TOKENS) + await generate_all(
            roomy_engine, continued, TOKENS
        )
        assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "block_size"), [(32, 32), (64, 32), (128, 128), (80, 16)])
@pytest.mark.filterwarnings("default")
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
