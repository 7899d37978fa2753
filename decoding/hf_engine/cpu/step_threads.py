"""Choose and limit the threads of a decoding step on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from decoding.hf_engine.cpu.packed_linear import MIN_WEIGHT_BYTES


def choose_step_threads(layers: nn.Module) -> int:
    """Choose the number of threads of a decoding step.

    If no weight of the decoder's layers is large, a step runs in one thread: waking a second one takes longer than its
    share of the work. `OMP_NUM_THREADS` overrides that.

    Args:
        layers: The decoder's layers.

    Returns:
        The number of threads.
    """
    is_small = all(weight.nbytes < MIN_WEIGHT_BYTES for weight in layers.parameters())
    return 1 if is_small and "OMP_NUM_THREADS" not in os.environ else torch.get_num_threads()


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Set the number of threads for the calling thread's operations within the block."""
    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
