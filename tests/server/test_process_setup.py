"""Settings of the server's process."""

import gc
import weakref

from server.process_setup import freeze_heap


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_freeze_heap_exempts_existing_objects_only() -> None:
    garbage, kept = Node(), Node()
    collected, exempt = weakref.ref(garbage), weakref.ref(kept)
    del garbage
    freeze_heap()
    try:
        assert collected() is None
        del kept
        later = Node()
        freed = weakref.ref(later)
        del later
        gc.collect()
        assert exempt() is not None
        assert freed() is None
    finally:
        gc.unfreeze()
    gc.collect()
    assert exempt() is None
