"""Linear layers for the few rows of a decoding step on a CPU, where the usual kernels are at their worst."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGE = 1 << 20  # bytes of one weight: for a smaller one the usual kernels are as quick
PACKED_AT_MOST = 2 << 30  # bytes of all weights: beyond this a second copy of them is dearer than the time it saves
FEWEST = 4  # rows: oneDNN's kernels for fewer are slower than with rows of zeros added


class PackedLinear(nn.Linear):
    """`nn.Linear` in float32 on a CPU whose weight is also there in the order in which oneDNN's kernels read it.

    The usual kernel takes one row as a matrix-vector product, in one thread, and twice its time for two rows. Reading
    the weight is all that few rows cost, and from a packed weight sixteen rows take less than twice the time of one.
    """

    packed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        enough = x.reshape(rows, -1)
        if rows < FEWEST:
            enough = nn.functional.pad(enough, (0, 0, 0, FEWEST - rows))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(enough, self.packed, self.bias, "none", [], "")
        return y[:rows].view(*x.shape[:-1], self.out_features)


def pack(network: nn.Module, head: nn.Module) -> None:
    """Turn the large linear layers of a decoder and its head into `PackedLinear`, where they can be."""
    linears = [
        module for module in (*network.modules(), head) if type(module) is nn.Linear and module.weight.nbytes >= LARGE
    ]
    on_cpu = all(module.weight.device.type == "cpu" and module.weight.dtype == torch.float32 for module in linears)
    if on_cpu and torch.backends.mkldnn.enabled and sum(m.weight.nbytes for m in linears) <= PACKED_AT_MOST:
        for module in linears:
            module.__class__ = PackedLinear  # in place: others hold and hook these very modules
            module.packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 2 * FEWEST)
