"""Linear layers for the few rows of a decoding step on a CPU, where the default kernels are slowest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

MIN_WEIGHT_BYTES = 1 << 20  # of one weight: for a smaller one the default kernels are as fast
MAX_TOTAL_BYTES = 2 << 30  # of all weights: beyond this the memory of a second copy costs more than the time it saves
MIN_ROWS = 4  # oneDNN's kernels for fewer rows are slower than with rows of zeros added
TRIALS = 5


class PackedLinear(nn.Linear):
    """`nn.Linear` in float32 on a CPU with a second copy of its weight in the memory order of oneDNN's kernels.

    With few rows, reading the weight is the whole cost. From a packed weight sixteen rows take less than twice the time
    of one. The default kernel is as fast for one row, and on some processors for three; on others two rows take twice
    its time.
    """

    packed_weight: Tensor
    max_default_rows: int  # up to this many rows the default kernel runs

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        rows = x.numel() // self.in_features
        if rows <= self.max_default_rows:
            return super().forward(x)
        y = apply_packed(x.reshape(rows, -1), self.packed_weight, self.bias)
        return y.view(*x.shape[:-1], self.out_features)


def apply_packed(x: Tensor, packed_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by a packed weight: [rows, in] -> [rows, out]."""
    padded = nn.functional.pad(x, (0, 0, 0, MIN_ROWS - len(x))) if len(x) < MIN_ROWS else x
    y: Tensor = torch.ops.mkldnn._linear_pointwise(padded, packed_weight, bias, "none", [], "")
    return y[: len(x)]


def pack_linears(network: nn.Module, head: nn.Module) -> None:
    """Turn the large linear layers of a decoder and its head into `PackedLinear`, where that is possible."""
    linears = [
        module
        for module in (*network.modules(), head)
        if type(module) is nn.Linear and module.weight.nbytes >= MIN_WEIGHT_BYTES
    ]
    on_cpu = all(module.weight.device.type == "cpu" and module.weight.dtype == torch.float32 for module in linears)
    if on_cpu and torch.backends.mkldnn.enabled and sum(m.weight.nbytes for m in linears) <= MAX_TOTAL_BYTES:
        max_default_rows: int | None = None
        for module in linears:
            packed_weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 2 * MIN_ROWS)
            max_default_rows = max_default_rows or measure_default_rows(module.weight.detach(), packed_weight)
            module.__class__ = PackedLinear  # in place, because other objects hold and tap these modules
            layer = cast(PackedLinear, module)
            layer.packed_weight, layer.max_default_rows = packed_weight, max_default_rows


def measure_default_rows(weight: Tensor, packed_weight: Tensor) -> int:
    """Measure with two rows which kernel is faster on this machine.

    Args:
        weight: [out, in].
        packed_weight: The same weight, packed.

    Returns:
        The number of rows up to which the default kernel is to run.
    """
    x = weight.new_zeros(2, weight.shape[1])
    default = measure_seconds(lambda: nn.functional.linear(x, weight))
    return MIN_ROWS - 1 if default < measure_seconds(lambda: apply_packed(x, packed_weight, None)) else 1


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs."""

    def measure_once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(measure_once() for _ in range(TRIALS))
