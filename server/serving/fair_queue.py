"""A queue before the engine in which API keys take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class FairQueue:
    """Hands out the engine's rows. A free row goes to the waiting key that holds the fewest.

    The engine's own queue is first come, first served. Without this one, all requests of a key would go before a later
    request of another key.
    """

    def __init__(self, rows: int, max_owner_rows: int | None = None) -> None:
        """Create a queue.

        Args:
            rows: Rows to hand out.
            max_owner_rows: Rows that one key can hold, so that rows are free when another key comes. A request for more
                waits until its key holds none. None: all rows.
        """
        self._rows = rows
        self._max_owner_rows = max_owner_rows or rows
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    async def acquire(self, owner: str, rows: int) -> int:
        """Wait for rows.

        Args:
            owner: The key's hash.
            rows: Rows that the request is expected to take.

        Returns:
            The rows to hand back to `release`.
        """
        rows = min(rows, self._rows)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append((rows, turn))
        self._grant()
        try:
            await turn
        except BaseException:
            if turn.cancelled():
                self._grant()
            else:
                self.release(owner, rows)
            raise
        return rows

    @asynccontextmanager
    async def hold(self, owner: str, rows: int) -> AsyncGenerator[None, None]:
        """Wait for rows, and hold them for as long as the context lasts."""
        held = await self.acquire(owner, rows)
        try:
            yield
        finally:
            self.release(owner, held)

    def is_free(self, owner: str, rows: int) -> bool:
        """Return whether `acquire` would not wait."""
        rows = min(rows, self._rows)
        held = self._held[owner]
        has_share = not held or held + rows <= self._max_owner_rows
        return not self._waiting and has_share and self._held.total() + rows <= self._rows

    def count_waiting(self, owner: str) -> int:
        """Count the requests of a key that wait."""
        return len(self._waiting.get(owner, ()))

    def release(self, owner: str, rows: int) -> None:
        """Hand back rows."""
        self._held[owner] -= rows
        if not self._held[owner]:
            del self._held[owner]
        self._grant()

    def _grant(self) -> None:
        while candidates := [owner for owner in self._waiting if self._is_within_share(owner)]:
            owner = min(candidates, key=self._held.__getitem__)
            queue = self._waiting[owner]
            rows, turn = queue[0]
            if not turn.cancelled():
                if self._held.total() + rows > self._rows:
                    return
                self._held[owner] += rows
                turn.set_result(None)
            queue.popleft()
            if not queue:
                del self._waiting[owner]

    def _is_within_share(self, owner: str) -> bool:
        """Return whether the first waiting request of a key may have its rows, if they are free."""
        rows, turn = self._waiting[owner][0]
        held = self._held[owner]
        return turn.cancelled() or not held or held + rows <= self._max_owner_rows
