"""Process settings for a CPU: threads of a decoding step, and the memory that the C library retains."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from decoding.hf_engine.cpu.packed_linear import MIN_WEIGHT_BYTES

# Names of mallopt's parameters in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8

NUM_ARENAS = 2
MMAP_BYTES = 1 << 20  # larger allocations have pages of their own


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


def limit_arenas() -> None:
    """Limit the heaps of the C library to a few, for small allocations only. It has an effect with glibc.

    By default glibc starts a heap for every thread that allocates, up to eight for each core. Each heap keeps most of
    its peak size, and a server has threads for images, requests, steps and the matcher. A large allocation has pages of
    its own, which return to the system when it is freed. By default glibc raises that size to that of the largest
    allocation that was freed.
    """
    mallopt = getattr(load_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, NUM_ARENAS)
        mallopt(MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(TRIM_THRESHOLD, MMAP_BYTES)


def trim_heap() -> None:
    """Return freed memory to the system. It has an effect with glibc."""
    malloc_trim = getattr(load_c_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def load_c_library() -> Any:
    return ctypes.CDLL(None)
