"""Answer the lines of one batch, several at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing, suppress
from functools import partial

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from openai.types import Batch, BatchError

from decoding.errors import BadRequest, EngineFailed, Overloaded
from server.batch.data_folder import convert_store_errors
from server.batch.jsonl import (
    BatchLine,
    LineReader,
    RefusedLine,
    build_line_error,
    format_answer,
    format_error,
    hash_custom_id,
    parse_validated_line,
)
from server.batch.progress import STORE_ERRORS, BatchProgress
from server.batch.results import ResultFiles
from server.batch.slices import SLICE_SECONDS, run_in_slices
from server.batch.store import UNFINISHED_STATUSES, BatchStore
from server.errors import ServiceUnavailable, build_error_response
from server.fair_queue import FairQueue
from server.observability.refusals import report_error
from server.service import Service
from server.serving.request_handler import BodyParser, generate_batch_json
from server.threads import run_to_end

RETRY_DELAY = 1.0  # seconds before a line is tried again after the queue was full


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


class BatchLineWorkers:
    """Answers the lines of a batch that have no result yet, and stores the results.

    Attributes:
        latest: The batch as it was last read or stored.
        failure: The first exception that has ended a worker; None if there is none. No further line starts then.
    """

    def __init__(
        self,
        service: Service,
        store: BatchStore,
        parsers: Mapping[str, BodyParser],
        progress: BatchProgress,
        *,
        owner: str,
        batch: Batch,
        max_line_bytes: int,
        line_queue: FairQueue,
        unstored_bytes: FairQueue,
        reading_limiter: CapacityLimiter,
    ) -> None:
        """Create the workers of a batch.

        Args:
            service: The engine and the settings.
            store: The store of files and batches.
            parsers: Endpoint -> parser of the requests of its lines.
            progress: Holds the state that the storage does not take.
            owner: Owner of the batch.
            batch: The batch.
            max_line_bytes: Largest line. A longer one is refused.
            line_queue: The lines that are in memory, of all batches. There are as many workers as lines that the owner
                may hold.
            unstored_bytes: The bytes of results that the storage does not take, of all batches.
            reading_limiter: The threads that read lines and results, of all batches.
        """
        self.latest = batch
        self.failure: Exception | None = None
        self._service = service
        self._store = store
        self._parsers = parsers
        self._progress = progress
        self._owner = owner
        self._max_line_bytes = max_line_bytes
        self._line_queue = line_queue
        self._unstored_bytes = unstored_bytes
        self._reading_limiter = reading_limiter
        self._total = batch.request_counts.total if batch.request_counts else 0
        self._results = ResultFiles(store, owner, batch.id)
        self._reader = LineReader(store.get_path(batch.input_file_id), max_line_bytes)
        self._line_number = 0
        self._is_read = False
        self._read_lock = asyncio.Lock()

    async def run(self) -> Batch:
        """Run the lines that have no result yet, unless the batch is over.

        Returns:
            The batch as it is then.

        Raises:
            Exception: The failure of a worker.
        """  # noqa: DOC502 - the attribute holds it
        await run_in_slices(self._results.recover(), self._reading_limiter)
        with closing(self._results), closing(self._reader):
            await self._save_counts()
            async with asyncio.TaskGroup() as group:
                for _ in range(self._line_queue.max_owner_units):
                    group.create_task(self._run_worker())
            if self.failure is not None:
                raise self.failure
            await self._save_counts()
        return self.latest

    async def _run_worker(self) -> None:
        """Run lines. A failure of one worker does not stop others before they have stored their results."""
        try:
            with suppress(BatchOver):
                while await self._run_next_line():
                    pass
        except Exception as error:
            self.failure = self.failure or error

    async def _run_next_line(self) -> bool:
        """Run a line and return whether there was one. It is read after its wait, so that few are in memory."""
        async with AsyncExitStack() as unit:
            if (line := await self._read_next_line(unit)) is None:
                return False
            result, is_answer = await self._run_line(line)
            size, store = len(result), partial(self._results.append, result, is_answer)
            del line, result
            is_stored = await self._progress.try_storing(self.latest, store)
        if not is_stored:
            if not self._unstored_bytes.is_free(self._owner, size):
                del store  # first of all, so that the result leaves the memory
                async with self._unstored_bytes.hold(self._owner, size):
                    raise ResultDropped
            async with self._unstored_bytes.hold(self._owner, size):
                await self._progress.retry_storing(self.latest, store)
        await self._progress.retry_storing(self.latest, self._save_counts)
        return True

    async def _read_next_line(self, unit: AsyncExitStack) -> BatchLine | RefusedLine | None:
        """Wait for a unit of the line queue, and read in slices. Many megabytes of finished lines may come first.

        Args:
            unit: Holds the unit of a line that is returned. Between two slices other keys can have it.

        Returns:
            The line, or None if there is none.
        """
        async with self._read_lock:
            while not (self._is_read or self.failure is not None or is_over(self.latest)):
                await unit.enter_async_context(self._line_queue.hold(self._owner, 1))
                line = await run_to_end(self._read_slice, limiter=self._reading_limiter)
                if line is not None:
                    return line
                await unit.aclose()
                await self._check_batch()
        return None

    def _read_slice(self) -> BatchLine | RefusedLine | None:
        """Return the next line that has no result, or None if `SLICE_SECONDS` pass before, or at the end."""
        ends_at = time.monotonic() + SLICE_SECONDS
        while text := self._reader.read():
            self._line_number += 1
            if not text.isspace():
                try:
                    line = parse_validated_line(text, self.latest.endpoint, self._max_line_bytes)
                except BadRequest as error:
                    raise LineUnreadable(build_line_error(error, self._line_number)) from error
                if hash_custom_id(line.custom_id) not in self._results.recovered_ids:
                    return line
            if time.monotonic() >= ends_at:
                return None
        self._is_read = True
        return None

    async def _run_line(self, line: BatchLine | RefusedLine) -> tuple[bytes, bool]:
        """Return the result of a line, and whether it is an answer."""
        if isinstance(line, RefusedLine):
            return self._format_error(line, line.error), False
        while True:
            try:
                parse_body = self._parsers[self.latest.endpoint]
                parsed = await run_sync(parse_body, line.body, limiter=self._service.work_limiter)
                if parsed.stream:
                    raise BadRequest("A line of a batch cannot be streamed.", param="stream")
                parsed = parsed.with_cache_salt(self._service.build_cache_salt(self._owner))
                answer = await generate_batch_json(parsed, self._service, self._owner, self._check_batch)
                return format_answer(line, answer), True
            except Overloaded:
                pass
            except BatchOver:
                raise
            except ServiceUnavailable:
                raise BatchInterrupted from None
            except EngineFailed as error:
                if not self._service.is_alive:
                    raise BatchInterrupted from None
                return self._format_error(line, error), False
            except Exception as error:
                return self._format_error(line, error), False
            await asyncio.sleep(RETRY_DELAY)
            await self._check_batch()

    def _format_error(self, line: BatchLine | RefusedLine, error: BaseException) -> bytes:
        """Format the output line of a failed request, and report its error."""
        error_response = build_error_response(error)
        report_error(error, error_response, self._service.metrics, prefix="batch_line")
        return format_error(line, error_response)

    async def _check_batch(self) -> None:
        """Look whether the batch was cancelled, because the line may have waited for long."""
        with suppress(*STORE_ERRORS), convert_store_errors():  # A failing store only delays a batch.
            self.latest = await self._store.get_batch(self._owner, self.latest.id)
        if is_over(self.latest):
            raise BatchOver

    async def _save_counts(self) -> None:
        self._progress.set_results(self.latest, await self._results.register())
        counts = build_request_counts(self._total, *self._results.counts)
        changed = await self._store.update_batch(
            self._owner, self.latest.id, *UNFINISHED_STATUSES, request_counts=counts
        )
        self.latest = changed or self.latest


def is_over(batch: Batch) -> bool:
    """Return whether no further line of a batch may start."""
    return batch.status == "cancelling" or (batch.expires_at or 0) < time.time()


def build_request_counts(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}
