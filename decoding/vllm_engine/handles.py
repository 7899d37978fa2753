"""The names of the memories that are next to the model, as the server process keeps count of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from decoding.answer import Memory


class Handles:
    """A memory that is forgotten while an ask goes by it is freed with the last such ask."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._used: Counter[str] = Counter()  # by running asks
        self._numbers = itertools.count()

    def new(self) -> Memory:
        """Not known before it is there."""
        return Memory(f"memory-{next(self._numbers)}")

    def forget(self, memory: Memory) -> bool:
        """Is it to be freed now?"""
        self.known.discard(memory.handle)
        return not self._used[memory.handle]

    @contextmanager
    def used(self, memories: Collection[Memory]) -> Iterator[list[Memory]]:
        """The list gets those that were forgotten meanwhile, and are to be freed after this block."""
        freed: list[Memory] = []
        handles = {memory.handle for memory in memories}
        self._used.update(handles)
        try:
            yield freed
        finally:
            self._used.subtract(handles)
            self._used = +self._used
            freed += [Memory(handle) for handle in sorted(handles - self.known) if not self._used[handle]]
