"""Answers batches next to the requests of clients, and resumes them after a restart.

The batches of an owner run one after the other, and those of different owners at the same time. A full or failing
storage only delays a batch. Its answers can be fetched meanwhile, and the batch object has the reason in `errors` until
the batch goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from openai.types import Batch, BatchError
from openai.types.batch import Errors

from server.batch.data_folder import convert_store_errors
from server.batch.line_workers import (
    BatchInterrupted,
    BatchLineWorkers,
    BatchOver,
    LineUnreadable,
    ResultDropped,
    build_request_counts,
    is_over,
)
from server.batch.progress import STORE_ERRORS, STORE_RETRY_DELAY, BatchProgress, build_batch_error
from server.batch.results import attach_results
from server.batch.slices import run_in_slices
from server.batch.store import READING_STATUSES, UNFINISHED_STATUSES, BatchStore
from server.batch.validation import validate_file
from server.fair_queue import FairQueue
from server.service import Service
from server.serving.request_handler import BodyParser

log = structlog.get_logger("onlyseen.server")

# Each thread takes the interpreter from the event loop for 5 ms at a time. Running batches do not wait for validations.
VALIDATION_THREADS = READING_THREADS = 2
EXPIRED = build_batch_error("batch_expired", "The completion window ended before all lines had an answer.")
MAX_UNSTORED_BYTES = 64_000_000  # of results in memory that the storage does not take, over all batches


class BatchRunner:
    """Runs the unfinished batches of a store on the engine.

    Attributes:
        progress: The progress of the unfinished batches.
    """

    def __init__(self, service: Service, store: BatchStore, parsers: Mapping[str, BodyParser]) -> None:
        """Create a runner.

        Args:
            service: The engine and the settings.
            store: The store of files and batches.
            parsers: Endpoint -> parser of the requests of its lines.
        """
        self.progress = BatchProgress()
        self._service = service
        self._store = store
        self._parsers = parsers
        self._max_line_bytes = service.settings.max_body_mb * 1_000_000
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._owner_tasks: dict[str, asyncio.Task[None]] = {}
        self._owners_to_repeat: set[str] = set()  # with changed batches since their task has listed them
        self._validation_limiter = CapacityLimiter(VALIDATION_THREADS)
        self._reading_limiter = CapacityLimiter(READING_THREADS)
        self._line_queue = create_line_queue(service)
        self._unstored_bytes = create_unstored_queue(service)

    def start(self) -> None:
        """Start to run batches in the background."""
        self._task = asyncio.create_task(self._run_forever())

    async def close(self) -> None:
        """Stop. Unfinished batches stay in the store."""
        tasks = [task for task in (self._task, *self._owner_tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Make the runner look for unfinished batches."""
        self._wake.set()

    async def _run_forever(self) -> None:
        while True:
            self._wake.clear()
            retry_delay = None
            try:
                owners = await self._store.list_unfinished_owners()
            except Exception as error:
                log.error("unfinished_batches_unreadable", exc_info=error)
                owners, retry_delay = [], STORE_RETRY_DELAY
            for owner in owners:
                if owner in self._owner_tasks:
                    self._owners_to_repeat.add(owner)
                else:
                    self._owner_tasks[owner] = asyncio.create_task(self._run_owner(owner))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), retry_delay)

    async def _run_owner(self, owner: str) -> None:
        """Run the unfinished batches of an owner, and make the runner look again if one of them has to be repeated."""
        self._owners_to_repeat.discard(owner)
        if not await self._run_unfinished(owner):
            self._owners_to_repeat.add(owner)
            await asyncio.sleep(STORE_RETRY_DELAY)
        del self._owner_tasks[owner]
        if owner in self._owners_to_repeat:
            self.wake()

    async def _run_unfinished(self, owner: str) -> bool:
        """Run the unfinished batches of an owner, and return whether none of them has to be tried again."""
        outcomes = []
        try:
            for batch_id in await self._store.list_unfinished(owner):
                outcomes.append(await self._try_batch(owner, await self._store.get_batch(owner, batch_id)))
        except Exception as error:
            log.error("unfinished_batches_unreadable", exc_info=error)
            return False
        return all(outcomes)

    async def _try_batch(self, owner: str, batch: Batch) -> bool:
        """Run a batch if it is unfinished. A failure of it must not block the other batches.

        Args:
            owner: Owner of the batch.
            batch: The batch.

        Returns:
            False if the batch has to be tried again.
        """  # noqa: DOC501 - the outer handler catches what is raised again
        if batch.status not in UNFINISHED_STATUSES:
            return True
        try:
            try:
                await self._run_batch(owner, batch)
            except BatchInterrupted:
                log.warning("batch_interrupted", batch=batch.id)
                message = "The engine has stopped. The batch continues after the next start of the server."
                self.progress.set_problem(batch, build_batch_error("engine_stopped", message))
                return True
            except STORE_ERRORS:
                raise
            except ResultDropped:
                return False
            except LineUnreadable as error:
                await self._fail_batch(owner, batch, [error.problem])
            except Exception as error:
                log.error("batch_failed", batch=batch.id, exc_info=error)
                problem = build_batch_error(
                    "internal_error", "The server failed to run the batch. Its log has the reason."
                )
                await self._fail_batch(owner, batch, [problem])
        except STORE_ERRORS as error:
            self.progress.report_problem(batch, error)
            return False
        self.progress.forget(batch)
        return True

    async def _run_batch(self, owner: str, batch: Batch) -> None:
        input_path = self._store.get_path(batch.input_file_id)
        with convert_store_errors():
            if batch.status in READING_STATUSES and not await run_sync(input_path.exists):
                problem = build_batch_error("input_file_missing", "The input file does not exist.", "input_file_id")
                await self._fail_batch(owner, batch, [problem])
                return
            if batch.status == "validating":
                batch, batch_errors = await self._validate(owner, batch, input_path)
                if batch_errors:
                    await self._fail_batch(owner, batch, batch_errors)
                    return
            workers = BatchLineWorkers(
                self._service,
                self._store,
                self._parsers,
                self.progress,
                owner=owner,
                batch=batch,
                max_line_bytes=self._max_line_bytes,
                line_queue=self._line_queue,
                unstored_bytes=self._unstored_bytes,
                reading_limiter=self._reading_limiter,
            )
            batch = await workers.run()
        await self._finish_batch(owner, batch)

    async def _validate(self, owner: str, batch: Batch, input_path: Path) -> tuple[Batch, list[BatchError]]:
        """Validate the input file of a batch, unless the batch is over before.

        Returns:
            The batch as it is then, and the errors in the file.
        """

        async def check_batch() -> None:
            nonlocal batch
            with suppress(*STORE_ERRORS), convert_store_errors():  # a failing store does not begin the work anew
                batch = await self._store.get_batch(owner, batch.id)
            if is_over(batch):
                raise BatchOver

        async def start() -> None:
            nonlocal batch
            counts = build_request_counts(count, 0, 0)
            batch = await self._set_status(owner, batch, "in_progress", request_counts=counts)

        steps = validate_file(input_path, batch.endpoint, self._max_line_bytes)
        try:
            count, batch_errors = await run_in_slices(steps, self._validation_limiter, check_batch)
            await check_batch()
        except BatchOver:
            return batch, []
        if not batch_errors:
            await self.progress.retry_storing(batch, start)
        return batch, batch_errors

    async def _finish_batch(self, owner: str, batch: Batch) -> None:
        """Attach the results and set the last status. A repetition after a crash has the same effect."""
        counts = batch.request_counts
        # A batch that ends before its file is validated has a total of 0.
        is_complete = counts is not None and counts.completed + counts.failed == counts.total > 0
        status = "cancelled" if batch.status == "cancelling" else "completed" if is_complete else "expired"
        await self._end_batch(owner, batch, status, [EXPIRED] if status == "expired" else [])

    async def _fail_batch(self, owner: str, batch: Batch, batch_errors: list[BatchError]) -> None:
        """Fail a batch with its reasons, and attach the results that it has."""
        await self._end_batch(owner, batch, "failed", batch_errors)

    async def _end_batch(self, owner: str, batch: Batch, status: str, batch_errors: list[BatchError]) -> None:
        """Attach the results and the errors, and set the last status."""
        results = await attach_results(self._store, owner, batch.id)
        errors = {"errors": Errors(data=batch_errors, object="list").model_dump()} if batch_errors else {}
        await self._set_status(owner, batch, status, **errors, **results)

    async def _set_status(self, owner: str, batch: Batch, status: str, **fields: Any) -> Batch:
        """Set a status and return the batch. A batch that was cancelled meanwhile does not become in_progress."""
        allowed = ("validating",) if status == "in_progress" else UNFINISHED_STATUSES
        fields = {"status": status, f"{status}_at": int(time.time()), **fields}
        changed = await self._store.update_batch(owner, batch.id, *allowed, **fields)
        batch = changed or await self._store.get_batch(owner, batch.id)
        log.info("batch_status_changed", batch=batch.id, status=batch.status)
        return batch


def create_line_queue(service: Service) -> FairQueue:
    """Create the queue for the lines that are in memory. With two or more API keys each has a share of them."""
    lines = service.settings.batch_requests
    return FairQueue(lines, service.settings.compute_key_share(lines))


def create_unstored_queue(service: Service) -> FairQueue:
    """Create the queue for the bytes of unstored results. With two or more API keys each has a share of them."""
    return FairQueue(MAX_UNSTORED_BYTES, service.settings.compute_key_share(MAX_UNSTORED_BYTES))


async def get_runner(request: Request) -> BatchRunner:
    """Return the batch runner of the application that handles a request."""
    runner: BatchRunner = request.app.state.batch_runner
    return runner


RunnerDep = Annotated[BatchRunner, Depends(get_runner)]
