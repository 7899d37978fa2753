"""The progress of unfinished batches: the reason for which a batch waits, and the files with its results so far."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from openai.types import Batch, BatchError
from openai.types.batch import Errors

from server.batch.store import UNFINISHED_STATUSES
from server.errors import StorageFull, StoreFailed

log = structlog.get_logger("onlyseen.server")

STORE_RETRY_DELAY = 2.0  # seconds before a failed operation of the store is tried again
STORE_ERRORS = (StorageFull, StoreFailed)


class BatchProgress:
    """Holds the problem and the result files of each unfinished batch in memory.

    A full or failing storage may be unable to take them.
    """

    def __init__(self) -> None:
        self._problems: dict[str, BatchError] = {}  # batch id -> the reason for which an unfinished batch waits
        self._waited_ids: set[str] = set()  # of unfinished batches that have ever waited
        self._results: dict[str, dict[str, str]] = {}  # id of an unfinished batch -> its fields with result files

    def describe(self, batch: Batch) -> Batch:
        """Return an unfinished batch with the fields that a full disk could not store.

        They are the reason for which it waits, and the files with its results so far, if it has ever waited.
        """
        if batch.status not in UNFINISHED_STATUSES:
            return batch
        fields: dict[str, Any] = {}
        if batch.id in self._waited_ids:
            fields |= self._results.get(batch.id, {})
        if (problem := self._problems.get(batch.id)) is not None:
            fields["errors"] = Errors(data=[problem], object="list")
        return batch.model_copy(update=fields)

    def set_results(self, batch: Batch, fields: dict[str, str]) -> None:
        """Set the fields of a batch that name its result files."""
        self._results[batch.id] = fields

    def set_problem(self, batch: Batch, problem: BatchError) -> None:
        """Set the reason for which a batch waits."""
        self._problems[batch.id] = problem
        self._waited_ids.add(batch.id)

    def report_problem(self, batch: Batch, error: StorageFull | StoreFailed) -> None:
        """Set a problem of the storage as the reason for which a batch waits, and log a new one."""
        code = "storage_full" if isinstance(error, StorageFull) else "storage_unavailable"
        problem = build_batch_error(code, f"{error.message} The batch continues when it can be stored.")
        if self._problems.get(batch.id) != problem:
            log.warning("batch_waits_for_storage", batch=batch.id, code=code, exc_info=error)
        self.set_problem(batch, problem)

    def forget(self, batch: Batch) -> None:
        """Forget a batch that is finished."""
        self._problems.pop(batch.id, None)
        self._results.pop(batch.id, None)
        self._waited_ids.discard(batch.id)

    async def try_storing(self, batch: Batch, store: Callable[[], Awaitable[None]]) -> bool:
        """Run an operation of the store, and return whether it succeeds. A problem becomes that of the batch."""
        try:
            await store()
        except STORE_ERRORS as error:
            self.report_problem(batch, error)
            return False
        self._problems.pop(batch.id, None)
        return True

    async def retry_storing(self, batch: Batch, store: Callable[[], Awaitable[None]]) -> None:
        """Repeat an operation of the store with a pause until it succeeds, so that no answer is lost.

        A batch that is cancelled or expires meanwhile ends when its answers are stored.

        Args:
            batch: The batch, which has the reason in `errors` while the operation fails.
            store: The operation.
        """
        while True:
            if await self.try_storing(batch, store):
                return
            await asyncio.sleep(STORE_RETRY_DELAY)


def build_batch_error(code: str, message: str, param: str | None = None) -> BatchError:
    return BatchError(code=code, line=None, message=message, param=param)
