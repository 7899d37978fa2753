"""The linear layers of a decoding step on a CPU give what the usual ones give, whatever the number of rows."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from decoding.hf_engine import linear
from decoding.hf_engine.linear import LARGE, PackedLinear, pack

WIDTH = 512  # 512 x 512 in float32 is just large


def decoder(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"large": nn.Linear(WIDTH, WIDTH, bias=bias), "small": nn.Linear(WIDTH, 8, bias=bias)}
    return nn.ModuleDict(layers).to(dtype).eval()


@pytest.mark.parametrize("most_usual", [1, 3])  # what a processor is best at
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (16, 1), (2, 40)])
def test_every_number_of_rows_gives_what_the_usual_layer_gives(
    shape: tuple[int, ...], bias: bool, most_usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "most_usual", lambda *_: most_usual)
    usual = decoder(bias)
    packed = copy.deepcopy(usual)
    pack(packed, nn.Identity())
    x = torch.randn(*shape, WIDTH)
    with torch.inference_mode():
        torch.testing.assert_close(packed["large"](x), usual["large"](x), rtol=1e-5, atol=1e-5)


def test_rows_that_are_no_rows_in_memory_are_read_as_they_are() -> None:
    usual = decoder()
    packed = copy.deepcopy(usual)
    pack(packed, nn.Identity())
    x = torch.randn(WIDTH, 2).t()
    with torch.inference_mode():
        torch.testing.assert_close(packed["large"](x), usual["large"](x), rtol=1e-5, atol=1e-5)


def test_only_large_weights_in_float32_are_packed() -> None:
    network = decoder()
    assert network["large"].weight.nbytes >= LARGE > network["small"].weight.nbytes
    pack(network, nn.Identity())
    assert [type(layer) for layer in network.values()] == [PackedLinear, nn.Linear]
    half = decoder(dtype=torch.bfloat16)
    pack(half, nn.Identity())
    assert {type(layer) for layer in half.values()} == {nn.Linear}


@pytest.mark.parametrize(("slow", "most"), [("usual", 1), ("packed", 3)])
def test_few_rows_take_the_kernel_that_is_quicker_on_this_machine(
    slow: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = {"usual": (nn.functional, "linear"), "packed": (linear, "from_packed")}[slow]
    monkeypatch.setattr(owner, name, lambda *_: time.sleep(0.01))
    network = decoder()
    pack(network, nn.Identity())
    assert network["large"].usual == most


def test_the_head_is_packed_too() -> None:
    head = nn.Linear(WIDTH, WIDTH)
    pack(decoder(), head)
    assert type(head) is PackedLinear
