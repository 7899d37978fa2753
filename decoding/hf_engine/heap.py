"""Memory of the process that the C library keeps for itself after it has been freed."""

import ctypes
from functools import cache
from typing import Any


def trim() -> None:
    """Back to the system with it, where the C library can (glibc)."""
    give_back = getattr(library(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@cache
def library() -> Any:
    return ctypes.CDLL(None)
