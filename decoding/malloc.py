"""Limit the memory that the C library retains in this process.

The process of the server decodes the images, with either engine. The transformers engine also has its KV cache there.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

# Names of mallopt's parameters in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8

NUM_ARENAS = 2
MMAP_BYTES = 1 << 20  # larger allocations have pages of their own


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
