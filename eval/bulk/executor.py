"""Moves items from the inputs through the servers to the store, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from eval.bulk.items import BulkItem
from eval.bulk.progress import JobProgress
from eval.bulk.rows import BulkRow
from eval.bulk.store import RowStore
from eval.errors import RunError

READ_SLICE = 32  # items that are read and looked up together

GetRow = Callable[[BulkItem], Awaitable[BulkRow]]


class BulkExecutor:
    """Executes a job: reads items, gets the rows that are missing, and stores them."""

    def __init__(
        self, store: RowStore, get_row: GetRow, workers: int, progress: JobProgress, max_failures: int | None = None
    ) -> None:
        """Create an executor.

        Args:
            store: The open store.
            get_row: Gets the row of an item.
            workers: Items in flight.
            progress: Shows the progress.
            max_failures: Rows with an error after which the job ends.
        """
        self._store = store
        self._get_row = get_row
        self._workers = workers
        self._progress = progress
        self._max_failures = max_failures
        self._items: asyncio.Queue[BulkItem | None] = asyncio.Queue(workers)
        self._rows: asyncio.Queue[BulkRow | None] = asyncio.Queue(workers)
        self._keys: set[str] = set()  # of the items in flight

    async def execute(self, items: Iterator[BulkItem]) -> None:
        """Get the missing rows of all items. The first error that ends the job is raised, when stored rows are safe.

        Args:
            items: The items. A thread reads them.
        """  # noqa: DOC501 - it is the error of a task
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(items))
                writer = group.create_task(self._write())
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self._workers):
                        workers.create_task(self._work())
                await self._rows.put(None)
                await writer
        except BaseExceptionGroup as errors:
            raise find_first(errors) from None

    async def _read(self, items: Iterator[BulkItem]) -> None:
        while some := await asyncio.to_thread(read_slice, items):
            missing = self._store.find_missing([item.key for item in some])
            for item in some:
                if item.key in missing and item.key not in self._keys:
                    self._keys.add(item.key)
                    await self._items.put(item)
                else:
                    self._progress.skip()
        for _ in range(self._workers):
            await self._items.put(None)

    async def _work(self) -> None:
        while (item := await self._items.get()) is not None:
            await self._rows.put(await self._get_row(item))

    async def _write(self) -> None:
        """Store the rows that have arrived, all of them in one transaction."""
        while (row := await self._rows.get()) is not None:
            rows = [row]
            while not self._rows.empty():
                if (other := self._rows.get_nowait()) is None:
                    await self._rows.put(None)
                    break
                rows.append(other)
            self._progress.add(await asyncio.to_thread(self._store.add, rows))
            self._keys.difference_update(row.key for row in rows)
            require_few_failures(self._store, self._max_failures)


def require_few_failures(store: RowStore, max_failures: int | None) -> None:
    """End a job that has too many rows with an error.

    Args:
        store: The store.
        max_failures: The number of rows with an error that the job may have.

    Raises:
        RunError: It has more.
    """
    if max_failures is not None and store.totals.failures > max_failures:
        raise RunError(f"{store.totals.failures} rows have an error. --max-failures {max_failures} ends the job.")


def read_slice(items: Iterator[BulkItem]) -> list[BulkItem]:
    """Read the next items, and compute their keys here, in a thread."""
    some = list(islice(items, READ_SLICE))
    for item in some:
        _ = item.key
    return some


def find_first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Find the first error of nested groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
