"""Memory of the process that the C library keeps for itself after it has been freed."""

import ctypes
from functools import cache
from typing import Any

ARENA_MAX = -8
"""What glibc's malloc.h calls this parameter of mallopt."""
ARENAS = 2


def restrain() -> None:
    """Holds the C library to few heaps from here on, where it can be told (glibc).

    Else it starts one for every thread that allocates, up to eight for each core, and each keeps most of what was once
    its peak; a server has threads for pictures, questions, steps and matches.
    """
    tell = getattr(library(), "mallopt", None)
    if tell is not None:
        tell(ARENA_MAX, ARENAS)


def trim() -> None:
    """Back to the system with it, where the C library can (glibc)."""
    give_back = getattr(library(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@cache
def library() -> Any:
    return ctypes.CDLL(None)
