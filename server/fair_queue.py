"""A queue for a limited resource, such as rows of the engine or memory, in which API keys take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class FairQueue:
    """Hands out a limited resource to API keys in turns. Free units go to the waiting owner that holds the fewest.

    Among owners that hold equally few, the owner that has waited longest since its last units comes first. The units
    are rows of the engine, lines of batches, pages or bytes. In a queue that is first come, first served, all requests
    of a key would go before a later request of another key.

    Attributes:
        max_owner_units: Units that one owner can hold.
    """

    def __init__(self, units: int, max_owner_units: int | None = None) -> None:
        """Create a queue.

        Args:
            units: Units to hand out.
            max_owner_units: Units that one owner can hold, so that units are free when another one comes. A request for
                more waits until its owner holds none. None: all units.
        """
        self._units = units
        self.max_owner_units = max_owner_units or units
        self._held: Counter[str] = Counter()
        # Owner -> units by request, in the order of equals. A dict would search its first item behind all removed ones.
        self._waiting: dict[str, OrderedDict[asyncio.Future[None], int]] = {}

    async def acquire(self, owner: str, units: int) -> int:
        """Wait for units.

        Args:
            owner: Owner of the request, such as the hash of its API key.
            units: Units that the request is expected to take.

        Returns:
            The units to hand back to `release`.
        """
        units = min(units, self._units)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, OrderedDict())[granted] = units
        self._grant()
        try:
            await granted
        except BaseException:
            if granted.cancelled():
                self._remove(owner, granted)
                self._grant()
            else:
                self.release(owner, units)
            raise
        return units

    @asynccontextmanager
    async def hold(self, owner: str, units: int) -> AsyncGenerator[None, None]:
        """Wait for units, and hold them for as long as the context lasts."""
        held = await self.acquire(owner, units)
        try:
            yield
        finally:
            self.release(owner, held)

    def is_free(self, owner: str, units: int) -> bool:
        """Return whether `acquire` would not wait."""
        units = min(units, self._units)
        held = self._held[owner]
        has_share = not held or held + units <= self.max_owner_units
        return not self._waiting and has_share and self._held.total() + units <= self._units

    def count_waiting(self, owner: str) -> int:
        """Count the requests of an owner that wait."""
        return len(self._waiting.get(owner, ()))

    def release(self, owner: str, units: int) -> None:
        """Hand back units."""
        self._held[owner] -= units
        if not self._held[owner]:
            del self._held[owner]
        self._grant()

    def _grant(self) -> None:
        while candidates := [owner for owner in self._waiting if self._is_within_share(owner)]:
            owner = min(candidates, key=self._held.__getitem__)  # the first of equals
            granted, units = next(iter(self._waiting[owner].items()))
            if not granted.cancelled():
                if self._held.total() + units > self._units:
                    return
                self._held[owner] += units
                granted.set_result(None)
                self._waiting[owner] = self._waiting.pop(owner)
            self._remove(owner, granted)

    def _remove(self, owner: str, granted: asyncio.Future[None]) -> None:
        """Remove a request if it waits. A cancelled one may have been removed before its task runs."""
        queue = self._waiting.get(owner)
        if queue is None:
            return
        queue.pop(granted, None)
        if not queue:
            del self._waiting[owner]

    def _is_within_share(self, owner: str) -> bool:
        """Return whether the first waiting request of an owner may have its units, if they are free."""
        granted, units = next(iter(self._waiting[owner].items()))
        held = self._held[owner]
        return granted.cancelled() or not held or held + units <= self.max_owner_units
