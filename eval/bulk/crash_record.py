"""Counts how often an engine died while it ran an item, so that such an item ends as an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_CRASHES = 3  # of an item: one beside other items, and two without any


class CrashRecord:
    """The items that run, with the number of times that each was started without an end.

    It is an actor of its own, which outlives the engines.
    """

    def __init__(self) -> None:
        self._starts: Counter[str] = Counter()

    def count(self, keys: Sequence[str]) -> list[int]:
        """Return how often an engine died while it ran each item."""
        return [self._starts[key] for key in keys]

    def start(self, keys: Sequence[str]) -> None:
        """Record that items run now."""
        self._starts.update(keys)

    def finish(self, key: str) -> None:
        """Record that an item has its row. Running it is known to be safe, if its row is lost with its batch."""
        self._starts.pop(key, None)
