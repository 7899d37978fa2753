"""How many of the CPU's threads a step of decoding takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from decoding.hf_engine.linear import LARGE


def for_steps(layers: nn.Module) -> int:
    """One where no weight of the decoder's layers is large: to wake a second takes longer than its share of the work.

    Whoever sets OMP_NUM_THREADS gets what they set.
    """
    small = all(weight.nbytes < LARGE for weight in layers.parameters())
    return 1 if small and "OMP_NUM_THREADS" not in os.environ else torch.get_num_threads()


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """The calling thread's operations take so many."""
    usual = torch.get_num_threads()
    if threads == usual:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
