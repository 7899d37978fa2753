"""The attention heads of a layer under tensor parallelism: each process runs its own, and the strategies see all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def keep(own: Tensor, dim: int) -> Tensor:
    """Return the heads of the only process."""
    return own


@dataclass(frozen=True, slots=True, eq=False)
class HeadShards:
    """The heads of this process among those of a layer.

    The processes run the same hooks on the same values, in the same order. So each call of `gather` meets that of the
    other processes, and random draws are equal.

    Attributes:
        size: Number of processes that share a layer.
        rank: Number of this process, from 0. Its heads follow those of the one before it.
        all_gather: Function of a contiguous tensor and a dimension. It concatenates the tensors of all processes along
            that dimension, in their order.
    """

    size: int = 1
    rank: int = 0
    all_gather: Callable[[Tensor, int], Tensor] = keep

    @classmethod
    def from_vllm(cls) -> HeadShards:
        """Describe this process of a running vLLM."""
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        return cls(group.world_size, group.rank_in_group, group.all_gather)

    def gather(self, own: Tensor, dim: int) -> Tensor:
        """Gather the heads of all processes. Each of them must call this method.

        Args:
            own: The heads of this process, along the dimension `dim`.
            dim: Dimension, from 0.

        Returns:
            The heads of the layer, in the order of the model.
        """
        return own if self.size == 1 else self.all_gather(own.contiguous(), dim)

    def select_own(self, heads: Tensor, dim: int) -> Tensor:
        """Select the heads of this process.

        Args:
            heads: The heads of a layer, along the dimension `dim`.
            dim: Dimension, from 0.

        Returns:
            A view.
        """
        return heads.chunk(self.size, dim)[self.rank]
