"""Admission of the lines of batches: a line waits for rows that are free for batches and for its key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from server.service import Service


class BatchLineAdmission:
    """The rows that a line of a batch holds until `release`.

    A line waits for rows of batches, then for the memory for its grammar, then for that for its decoded images, then
    for that for its images as the model reads them, then for rows of its key. Requests of clients wait for the last
    four in this order too. So no two requests wait for each other,
    and only lines with rows of batches hold what clients wait for. Lines of a key keep their rows of batches while
    requests of the same key fill its share. Lines of other keys can wait for these. To take rows of the key first would
    make clients wait for them, which is worse.
    """

    deadline: float | None = None  # seconds of the event loop's clock; None until the line has its rows

    def __init__(self, service: Service, owner: str, check_batch: Callable[[], Awaitable[None]]) -> None:
        """Create an admission.

        Args:
            service: The server's `Service`.
            owner: Owner of the batch.
            check_batch: Raises an exception if no further line of the batch may start.
        """
        self._service = service
        self.owner = owner
        self._check_batch = check_batch
        self._rows = AsyncExitStack()

    @property
    def rows_at_once(self) -> int:
        """The rows that the line may take at a time."""
        return self._service.batch_queue.max_owner_units  # at most the key's share of the engine's rows

    async def wait_for_batch_rows(self, rows: int) -> None:
        """Wait for rows of batches, before anything is loaded.

        Args:
            rows: Rows that the line is expected to take.
        """
        await self._rows.enter_async_context(self._service.batch_queue.hold(self.owner, rows))
        await self._check_batch()

    async def wait(self, estimate_rows: Callable[[], Awaitable[int]]) -> None:
        """Wait for rows of the key. With fewer than two API keys this does not wait.

        Args:
            estimate_rows: Returns the rows that the line is expected to take.
        """
        if self._service.fair_queue is not None:
            rows = await estimate_rows()
            await self._rows.enter_async_context(self._service.fair_queue.hold(self.owner, rows))
        await self._check_batch()  # The line may have waited for the memory for its images, too.
        self.deadline = asyncio.get_running_loop().time() + self._service.settings.request_timeout

    def return_body_budget(self) -> None:
        """Do nothing: the bodies of lines are bounded by the number of lines in memory."""

    async def release(self) -> None:
        """Hand back the rows."""
        await self._rows.aclose()
