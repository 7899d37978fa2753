"""Memory of the process that the C library keeps for itself after it has been freed."""

import ctypes
from functools import cache
from typing import Any

# What glibc's malloc.h calls these parameters of mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8

ARENAS = 2
LARGE = 1 << 20  # bytes


def restrain() -> None:
    """Holds the C library to few heaps from here on, and those to small things, where it can be told (glibc).

    Else it starts one for every thread that allocates, up to eight for each core, and each keeps most of what was once
    its peak; a server has threads for pictures, questions, steps and matches. What is large has pages of its own, which
    go back to the system with it: by itself the library raises that size to that of the largest thing that was freed.
    """
    tell = getattr(library(), "mallopt", None)
    if tell is not None:
        tell(ARENA_MAX, ARENAS)
        tell(MMAP_THRESHOLD, LARGE)
        tell(TRIM_THRESHOLD, LARGE)


def trim() -> None:
    """Back to the system with it, where the C library can (glibc)."""
    give_back = getattr(library(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@cache
def library() -> Any:
    return ctypes.CDLL(None)
