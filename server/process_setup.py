"""Settings of the server's process."""

from __future__ import annotations

import gc
from contextlib import suppress


def raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard one, because every open connection is a file."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def freeze_heap() -> None:
    """Exempt the objects that exist now from garbage collection.

    They belong to the imported libraries and to the model, and live as long as the process. A collection that visits
    them stops the server for half a second.
    """
    gc.collect()
    gc.freeze()
