"""The names of the memories that are next to the model, as the server process keeps count of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from decoding.answer import Memory
from decoding.errors import BadRequest
from decoding.vllm_engine.memories import MOST_BYTES, full


class Handles:
    """A memory that is forgotten while an ask goes by it is freed with the last such ask."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.known: set[str] = set()
        self.most_bytes = most_bytes
        self._bytes: dict[str, int] = {}  # set aside
        self._used: Counter[str] = Counter()  # by running asks
        self._numbers = itertools.count()

    def new(self, size: int = 0) -> Memory:
        """Not known before it is there. `size`: bytes to set aside for it; 0 where it is small.

        Raises:
            BadRequest: it is larger than all memories may be together.
            Overloaded: the others leave no room for it.
        """
        if size > self.most_bytes:
            raise BadRequest(f"What the strategy remembers takes {size} bytes; this engine holds {self.most_bytes}.")
        if sum(self._bytes.values()) + size > self.most_bytes:
            raise full()
        memory = Memory(f"memory-{next(self._numbers)}")
        if size:
            self._bytes[memory.handle] = size
        return memory

    def forget(self, memory: Memory) -> bool:
        """Is it to be freed now?"""
        self.known.discard(memory.handle)
        if self._used[memory.handle]:
            return False
        self._bytes.pop(memory.handle, None)
        return True

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
