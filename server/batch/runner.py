"""Answers batches next to the requests of clients, and resumes them after a restart.

The batches of an owner run one after the other, and those of different owners at the same time. A full or failing
storage only delays a batch. Its answers can be fetched meanwhile, and the batch object has the reason in `errors` until
the batch goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from openai.types import Batch, BatchError
from openai.types.batch import Errors

from decoding.errors import BadRequest, EngineFailed, Overloaded
from server.batch.data_folder import store_errors
from server.batch.jsonl import (
    BatchLine,
    RefusedLine,
    build_line_error,
    format_answer,
    format_error,
    iter_lines,
    parse_validated_line,
    validate_file,
)
from server.batch.results import ResultFiles, attach_results
from server.batch.store import READING_STATUSES, UNFINISHED_STATUSES, BatchStore
from server.errors import ServiceUnavailable, StorageFull, StoreFailed
from server.fair_queue import FairQueue
from server.service import Service
from server.serving.request_handler import BodyParser, ParsedRequest, generate_batch_json

log = structlog.get_logger("onlyseen.server")

RETRY_DELAY = 1.0  # seconds before a line is tried again after the queue was full
STORE_RETRY_DELAY = 2.0  # seconds before a failed operation of the store is tried again
MAX_UNSTORED_BYTES = 64_000_000  # of results in memory that the storage does not take, over all batches
STORE_PROBLEMS = (StorageFull, StoreFailed)


class BatchOver(Exception):
    """The batch was cancelled or has expired while a line waited. The line is dropped."""


class ResultDropped(Exception):
    """A result is dropped, because neither the storage nor the memory has room for it. The batch is repeated."""


class LineUnreadable(Exception):
    """A line is refused, and its custom_id is not known, so that it can have no result. The batch fails."""

    def __init__(self, problem: BatchError) -> None:
        super().__init__(problem.message)
        self.problem = problem


class BatchInterrupted(Exception):
    """The engine is gone. The rest of the batch runs after the next start of the server."""


class BatchRunner:
    """Runs the unfinished batches of a store on the engine."""

    def __init__(self, service: Service, store: BatchStore, parsers: Mapping[str, BodyParser]) -> None:
        """Create a runner.

        Args:
            service: The engine and the settings.
            store: The store of files and batches.
            parsers: Endpoint -> parser of the requests of its lines.
        """
        self._service = service
        self._store = store
        self._parsers = parsers
        self._problems: dict[str, BatchError] = {}  # batch id -> the reason for which an unfinished batch waits
        self._has_waited: set[str] = set()  # ids of unfinished batches
        self._results: dict[str, dict[str, str]] = {}  # id of an unfinished batch -> its fields with result files
        self._max_line_bytes = service.settings.max_body_mb * 1_000_000
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._owner_tasks: dict[str, asyncio.Task[None]] = {}
        self._owners_to_repeat: set[str] = set()  # with changed batches since their task has listed them
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

    def describe_progress(self, batch: Batch) -> Batch:
        """Return an unfinished batch with what a full disk could not store.

        That is the reason for which it waits, and the files with its results so far, if it has ever waited.
        """
        if batch.status not in UNFINISHED_STATUSES:
            return batch
        fields: dict[str, Any] = {}
        if batch.id in self._has_waited:
            fields |= self._results.get(batch.id, {})
        if (problem := self._problems.get(batch.id)) is not None:
            fields["errors"] = Errors(data=[problem], object="list")
        return batch.model_copy(update=fields)

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
        """
        if batch.status not in UNFINISHED_STATUSES:
            return True
        try:
            try:
                await self._run_batch(owner, batch)
            except BatchInterrupted:
                log.warning("batch_interrupted", batch=batch.id)
                message = "The engine has stopped. The batch continues after the next start of the server."
                self._add_problem(batch, build_batch_error("engine_stopped", message))
                return True
            except STORE_PROBLEMS:
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
        except STORE_PROBLEMS as error:
            self._report_problem(batch, error)
            return False
        self._problems.pop(batch.id, None)
        self._results.pop(batch.id, None)
        self._has_waited.discard(batch.id)
        return True

    def _report_problem(self, batch: Batch, error: StorageFull | StoreFailed) -> None:
        code = "storage_full" if isinstance(error, StorageFull) else "storage_unavailable"
        problem = build_batch_error(code, f"{error.message} The batch continues when it can be stored.")
        if self._problems.get(batch.id) != problem:
            log.warning("batch_waits_for_storage", batch=batch.id, code=code, exc_info=error)
        self._add_problem(batch, problem)

    def _add_problem(self, batch: Batch, problem: BatchError) -> None:
        self._problems[batch.id] = problem
        self._has_waited.add(batch.id)

    async def _run_batch(self, owner: str, batch: Batch) -> None:
        input_path = self._store.get_path(batch.input_file_id)
        with store_errors():
            if batch.status in READING_STATUSES and not await run_sync(input_path.exists):
                problem = build_batch_error("input_file_missing", "The input file does not exist.", "input_file_id")
                await self._fail_batch(owner, batch, [problem])
                return
            if batch.status == "validating":
                count, batch_errors = await run_sync(validate_file, input_path, batch.endpoint, self._max_line_bytes)
                if batch_errors:
                    await self._fail_batch(owner, batch, batch_errors)
                    return
                counts = build_request_counts(count, 0, 0)
                batch = await self._set_status(owner, batch, "in_progress", request_counts=counts)
            batch = await self._run_lines(owner, batch, input_path)
        await self._finish_batch(owner, batch)

    async def _run_lines(self, owner: str, batch: Batch, input_path: Path) -> Batch:
        """Run the lines that have no result yet, unless the batch is over, and return the batch as it is then."""
        results = ResultFiles(self._store, owner, batch.id)
        await run_sync(results.recover)
        total = batch.request_counts.total if batch.request_counts else 0
        remaining = self._iter_remaining(batch, input_path, results.recovered_ids)
        latest, read_lock = batch, asyncio.Lock()
        failure: Exception | None = None

        async def read_next_line() -> BatchLine | RefusedLine | None:
            """Read in a thread, because many megabytes of finished lines may come before the next one."""
            async with read_lock:
                return None if failure is not None or is_over(latest) else await run_sync(next, remaining, None)

        async def save_counts() -> None:
            nonlocal latest
            self._results[batch.id] = await results.register()
            changed = await self._store.update_batch(
                owner, batch.id, *UNFINISHED_STATUSES, request_counts=build_request_counts(total, *results.counts)
            )
            latest = changed or latest

        async def check_batch() -> None:
            """Look whether the batch was cancelled, because the line may have waited for long."""
            nonlocal latest
            with suppress(*STORE_PROBLEMS), store_errors():  # A failing store only delays a batch.
                latest = await self._store.get_batch(owner, batch.id)
            if is_over(latest):
                raise BatchOver

        async def run_next_line() -> bool:
            """Run a line and return whether there was one. It is read after its wait, so that few are in memory."""
            async with self._line_queue.hold(owner, 1):
                if (line := await read_next_line()) is None:
                    return False
                result, is_answer = await self._run_line(line, batch, owner, check_batch)
                size, store = len(result), partial(results.append, result, is_answer)
                del line, result
                is_stored = await self._try_storing(batch, store)
            if not is_stored:
                if not self._unstored_bytes.is_free(owner, size):
                    del store  # first of all, so that the result leaves the memory
                    async with self._unstored_bytes.hold(owner, size):
                        raise ResultDropped
                async with self._unstored_bytes.hold(owner, size):
                    await self._retry_storing(batch, store)
            await self._retry_storing(batch, save_counts)
            return True

        async def run_worker() -> None:
            """Run lines. A failure of one worker does not stop others before they have stored what they have."""
            nonlocal failure
            try:
                with suppress(BatchOver):
                    while await run_next_line():
                        pass
            except Exception as error:
                failure = failure or error

        with closing(results):
            await save_counts()
            async with asyncio.TaskGroup() as group:
                for _ in range(self._line_queue.max_owner_units):
                    group.create_task(run_worker())
            if failure is not None:
                raise failure
            await save_counts()
        return latest

    def _iter_remaining(
        self, batch: Batch, input_path: Path, finished_ids: Set[str]
    ) -> Iterator[BatchLine | RefusedLine]:
        for number, text in enumerate(iter_lines(input_path, self._max_line_bytes), start=1):
            if not text.isspace():
                try:
                    line = parse_validated_line(text, batch.endpoint, self._max_line_bytes)
                except BadRequest as error:
                    raise LineUnreadable(build_line_error(error, number)) from error
                if line.custom_id not in finished_ids:
                    yield line

    async def _retry_storing(self, batch: Batch, store: Callable[[], Awaitable[None]]) -> None:
        """Repeat an operation of the store with a pause until it succeeds, so that no answer is lost.

        A batch that is cancelled or expires meanwhile ends when its answers are stored.

        Args:
            batch: The batch, which has the reason in `errors` while the operation fails.
            store: The operation.
        """
        while True:
            if await self._try_storing(batch, store):
                return
            await asyncio.sleep(STORE_RETRY_DELAY)

    async def _try_storing(self, batch: Batch, store: Callable[[], Awaitable[None]]) -> bool:
        """Run an operation of the store, and return whether it succeeds. A problem becomes that of the batch."""
        try:
            await store()
        except STORE_PROBLEMS as error:
            self._report_problem(batch, error)
            return False
        self._problems.pop(batch.id, None)
        return True

    async def _run_line(
        self, line: BatchLine | RefusedLine, batch: Batch, owner: str, check_batch: Callable[[], Awaitable[None]]
    ) -> tuple[bytes, bool]:
        """Return the result of a line, and whether it is an answer."""
        if isinstance(line, RefusedLine):
            return format_error(line, line.error), False
        while True:
            try:
                parsed = await run_sync(
                    parse_request, line, self._parsers[batch.endpoint], limiter=self._service.work_limiter
                )
                if parsed.stream:
                    raise BadRequest("A line of a batch cannot be streamed.", param="stream")
                parsed = parsed.with_cache_salt(self._service.build_cache_salt(owner))
                return format_answer(line, await generate_batch_json(parsed, self._service, owner, check_batch)), True
            except Overloaded:
                pass
            except BatchOver:
                raise
            except ServiceUnavailable:
                raise BatchInterrupted from None
            except EngineFailed as error:
                if not self._service.is_alive:
                    raise BatchInterrupted from None
                return format_error(line, error), False
            except Exception as error:
                return format_error(line, error), False
            await asyncio.sleep(RETRY_DELAY)
            await check_batch()

    async def _finish_batch(self, owner: str, batch: Batch) -> None:
        """Attach the results and set the last status. A repetition after a crash has the same effect."""
        counts = batch.request_counts
        is_complete = counts is not None and counts.completed + counts.failed == counts.total
        status = "cancelled" if batch.status == "cancelling" else "completed" if is_complete else "expired"
        await self._set_status(owner, batch, status, **await attach_results(self._store, owner, batch.id))

    async def _fail_batch(self, owner: str, batch: Batch, batch_errors: list[BatchError]) -> None:
        """Fail a batch with its reasons, and attach the results that it has."""
        errors = Errors(data=batch_errors, object="list").model_dump()
        await self._set_status(
            owner, batch, "failed", errors=errors, **await attach_results(self._store, owner, batch.id)
        )

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


def parse_request(line: BatchLine, parse_body: BodyParser) -> ParsedRequest:
    """Parse the request of a line. Slow for large bodies: call it in a thread."""
    return parse_body(line.body)


def is_over(batch: Batch) -> bool:
    """Return whether no further line of a batch may start."""
    return batch.status == "cancelling" or (batch.expires_at or 0) < time.time()


def build_batch_error(code: str, message: str, param: str | None = None) -> BatchError:
    return BatchError(code=code, line=None, message=message, param=param)


def build_request_counts(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}


async def get_runner(request: Request) -> BatchRunner:
    """Return the batch runner of the application that handles a request."""
    runner: BatchRunner = request.app.state.batch_runner
    return runner


RunnerDep = Annotated[BatchRunner, Depends(get_runner)]
