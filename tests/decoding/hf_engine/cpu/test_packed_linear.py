"""Packed linear layers against `nn.Linear`, for all numbers of rows."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from decoding.hf_engine.cpu import packed_linear
from decoding.hf_engine.cpu.packed_linear import MIN_WEIGHT_BYTES, PackedLinear, pack_linears

WIDTH = 512  # a 512 x 512 weight in float32 has MIN_WEIGHT_BYTES


def decoder(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"large": nn.Linear(WIDTH, WIDTH, bias=bias), "small": nn.Linear(WIDTH, 8, bias=bias)}
    return nn.ModuleDict(layers).to(dtype).eval()


@pytest.mark.parametrize("max_default_rows", [1, 3])  # depends on the processor
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (16, 1), (2, 40)])
def test_packed_linear_equals_linear_for_all_row_counts(
    shape: tuple[int, ...], bias: bool, max_default_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "measure_default_rows", lambda *_: max_default_rows)
    usual = decoder(bias)
    packed = copy.deepcopy(usual)
    pack_linears(packed, nn.Identity())
    x = torch.randn(*shape, WIDTH)
    with torch.inference_mode():
        torch.testing.assert_close(packed["large"](x), usual["large"](x), rtol=1e-5, atol=1e-5)


def test_packed_linear_accepts_noncontiguous_input() -> None:
    usual = decoder()
    packed = copy.deepcopy(usual)
    pack_linears(packed, nn.Identity())
    x = torch.randn(WIDTH, 2).t()
    with torch.inference_mode():
        torch.testing.assert_close(packed["large"](x), usual["large"](x), rtol=1e-5, atol=1e-5)


def test_only_large_weights_in_float32_are_packed() -> None:
    network = decoder()
    assert network["large"].weight.nbytes >= MIN_WEIGHT_BYTES > network["small"].weight.nbytes
    pack_linears(network, nn.Identity())
    assert [type(layer) for layer in network.values()] == [PackedLinear, nn.Linear]
    half = decoder(dtype=torch.bfloat16)
    pack_linears(half, nn.Identity())
    assert {type(layer) for layer in half.values()} == {nn.Linear}


@pytest.mark.parametrize(("slow", "most"), [("usual", 1), ("packed", 3)])
def test_few_rows_use_the_faster_kernel(slow: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name = {"usual": (nn.functional, "linear"), "packed": (packed_linear, "apply_packed")}[slow]
    monkeypatch.setattr(target, name, lambda *_: time.sleep(0.01))
    network = decoder()
    pack_linears(network, nn.Identity())
    assert network["large"].max_default_rows == most


def test_head_is_packed() -> None:
    head = nn.Linear(WIDTH, WIDTH)
    pack_linears(decoder(), head)
    assert type(head) is PackedLinear
