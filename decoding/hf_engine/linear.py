"""Linear layers for the few rows of a decoding step on a CPU, where the usual kernels are at their worst."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

LARGE = 1 << 20  # bytes of one weight: for a smaller one the usual kernels are as quick
PACKED_AT_MOST = 2 << 30  # bytes of all weights: beyond this a second copy of them is dearer than the time it saves
FEWEST = 4  # rows: oneDNN's kernels for fewer are slower than with rows of zeros added
TRIES = 5


class PackedLinear(nn.Linear):
    """`nn.Linear` in float32 on a CPU whose weight is also there in the order in which oneDNN's kernels read it.

    Reading the weight is all that few rows cost, and from a packed weight sixteen rows take less than twice the time of
    one. The usual kernel is as quick for one row, and on some processors for three; on others two take twice its time.
    """

    packed: Tensor
    usual: int  # up to so many rows the usual kernel

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows <= self.usual:
            return super().forward(x)
        return from_packed(x.reshape(rows, -1), self.packed, self.bias).view(*x.shape[:-1], self.out_features)


def from_packed(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """[rows, in] -> [rows, out]."""
    enough = nn.functional.pad(x, (0, 0, 0, FEWEST - len(x))) if len(x) < FEWEST else x
    y: Tensor = torch.ops.mkldnn._linear_pointwise(enough, packed, bias, "none", [], "")
    return y[: len(x)]


def pack(network: nn.Module, head: nn.Module) -> None:
    """Turn the large linear layers of a decoder and its head into `PackedLinear`, where they can be."""
    linears = [
        module for module in (*network.modules(), head) if type(module) is nn.Linear and module.weight.nbytes >= LARGE
    ]
    on_cpu = all(module.weight.device.type == "cpu" and module.weight.dtype == torch.float32 for module in linears)
    if on_cpu and torch.backends.mkldnn.enabled and sum(m.weight.nbytes for m in linears) <= PACKED_AT_MOST:
        usual: int | None = None
        for module in linears:
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 2 * FEWEST)
            usual = usual or most_usual(module.weight.detach(), packed)
            module.__class__ = PackedLinear  # in place: others hold and hook these very modules
            layer = cast(PackedLinear, module)
            layer.packed, layer.usual = packed, usual


def most_usual(weight: Tensor, packed: Tensor) -> int:
    """Up to how many rows the usual kernel is to be taken: whether it is the quicker one here is tried with two."""
    x = weight.new_zeros(2, weight.shape[1])
    usual = seconds(lambda: nn.functional.linear(x, weight))
    return FEWEST - 1 if usual < seconds(lambda: from_packed(x, packed, None)) else 1


def seconds(work: Callable[[], object]) -> float:
    """The best of a few times."""

    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(TRIES))
