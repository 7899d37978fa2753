"""The turn of a line of a batch: it waits for rows that are free for its key and for batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from server.service import Service


class BatchTurn:
    """The rows that a line of a batch holds from `wait` until `release`."""

    deadline: float | None = None  # of the event loop's clock; it begins to run when the line has its rows

    def __init__(self, service: Service, owner: str, check_batch: Callable[[], Awaitable[None]]) -> None:
        """Create a turn.

        Args:
            service: The server's `Service`.
            owner: Owner of the batch.
            check_batch: Raises an exception if no further line of the batch may start.
        """
        self._service = service
        self._owner = owner
        self._check_batch = check_batch
        self._rows = AsyncExitStack()

    @property
    def rows_at_once(self) -> int:
        """The rows that the line may take at a time."""
        batch_rows = self._service.batch_queue.max_owner_units
        return min(batch_rows, self._service.max_key_rows or batch_rows)

    async def wait(self, estimate_rows: Callable[[], Awaitable[int]]) -> None:
        """Wait for the rows of the line.

        The rows of the key come first, so that no line holds rows of batches while its key is busy.

        Args:
            estimate_rows: Returns the rows that the line is expected to take.
        """
        rows = await estimate_rows()
        if self._service.fair_queue is not None:
            await self._rows.enter_async_context(self._service.fair_queue.hold(self._owner, rows))
        await self._rows.enter_async_context(self._service.batch_queue.hold(self._owner, rows))
        await self._check_batch()
        self.deadline = asyncio.get_running_loop().time() + self._service.settings.request_timeout

    async def release(self) -> None:
        """Hand back the rows."""
        await self._rows.aclose()
