"""Works batches off beside the requests of clients, one batch after the other, and goes on after a restart."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
from anyio.to_thread import run_sync
from openai.types import Batch, BatchRequestCounts
from openai.types.batch import Errors

from decoding.errors import BadRequest, EngineFailed, Overloaded
from server import asking, chat, responses, text
from server.asking import Asked
from server.batch.lines import Line, answered, done, flaws, line_of, lines, refused
from server.batch.store import Store
from server.errors import Unavailable
from server.service import Service

log = structlog.get_logger("onlyseen.server")

READERS: dict[str, Callable[[bytes], Asked]] = {
    "/v1/chat/completions": chat.read,
    "/v1/completions": text.read,
    "/v1/responses": responses.read,
}
PAUSE = 1.0  # seconds before another try, when the queue is full


class Stopped(Exception):
    """The engine is gone. What is left of the batch waits for the next start."""


class Runner:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._store: Store = service.store
        self._wake = asyncio.Event()
        self._cancelled: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        self._wake.set()

    def cancel(self, identity: str) -> None:
        self._cancelled.add(identity)
        self.wake()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            for owner, batch in await self._store.unfinished():
                await self._try(owner, batch)
            await self._wake.wait()

    async def _try(self, owner: str, batch: Batch) -> None:
        """What a batch cannot go on from must not keep the others waiting."""
        try:
            await self._run(owner, batch)
        except Stopped:
            log.warning("a batch waits for the next start", batch=batch.id)
        except Exception as error:
            log.error("a batch was given up", batch=batch.id, exc_info=error)
            try:
                await self._enter(owner, batch, "failed", "failed_at")
            except Exception as unwritten:
                log.error("a batch waits for the next start", batch=batch.id, exc_info=unwritten)

    async def _run(self, owner: str, batch: Batch) -> None:
        source = self._store.path(batch.input_file_id)
        if batch.status == "validating":
            count, found = await run_sync(flaws, source, batch.endpoint)
            if found:
                batch.errors = Errors(data=found, object="list")
                await self._enter(owner, batch, "failed", "failed_at")
                return
            batch.request_counts = counts(count, 0, 0)
            await self._enter(owner, batch, "in_progress", "in_progress_at")
        if batch.status == "in_progress":
            await self._ask_all(owner, batch, source)
        await self._finish(owner, batch)

    async def _ask_all(self, owner: str, batch: Batch, source: Path) -> None:
        said, failed = self._outcomes(batch)
        answers, errors = await run_sync(done, said), await run_sync(done, failed)
        total = batch.request_counts.total if batch.request_counts else 0
        asked = (line_of(text, batch.endpoint) for text in lines(source))
        left = (line for line in asked if line.custom_id not in answers and line.custom_id not in errors)
        with said.open("ab") as ends_well, failed.open("ab") as ends_badly:
            tallied = [len(answers), len(errors)]

            async def hand(line: Line) -> None:
                outcome, is_answer = await self._ask(line, batch)
                file = ends_well if is_answer else ends_badly
                file.write(outcome)
                file.flush()
                tallied[not is_answer] += 1
                batch.request_counts = counts(total, *tallied)
                if batch.id in self._cancelled:
                    batch.status = "cancelling"
                await self._store.put(owner, batch)

            await self._some_at_a_time(left, hand, batch)

    async def _some_at_a_time(self, left: Iterator[Line], hand: Callable[[Line], Any], batch: Batch) -> None:
        async def hands() -> None:
            for line in left:
                if batch.id in self._cancelled or (batch.expires_at or 0) < time.time():
                    return
                await hand(line)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._service.settings.batch_requests):
                    group.create_task(hands())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _ask(self, line: Line, batch: Batch) -> tuple[bytes, bool]:
        """Its outcome, and whether that is an answer."""
        while True:
            try:
                asked = await run_sync(READERS[batch.endpoint], json.dumps(line.body).encode())
                if asked.streams:
                    raise BadRequest("A line of a batch cannot be streamed.", param="stream")
                return answered(line, await asking.written(asked, self._service)), True
            except Overloaded:
                await asyncio.sleep(PAUSE)
            except Unavailable:
                raise Stopped from None
            except EngineFailed as error:
                if not self._service.is_alive:
                    raise Stopped from None
                return refused(line, error), False
            except Exception as error:
                return refused(line, error), False

    async def _finish(self, owner: str, batch: Batch) -> None:
        is_cancelled = batch.id in self._cancelled or batch.status == "cancelling"
        complete = batch.request_counts is not None and (
            batch.request_counts.completed + batch.request_counts.failed == batch.request_counts.total
        )
        said, failed = self._outcomes(batch)
        if await run_sync(has_content, said):
            batch.output_file_id = (await self._store.keep(owner, said, f"{batch.id}_output.jsonl", "batch_output")).id
        if await run_sync(has_content, failed):
            batch.error_file_id = (await self._store.keep(owner, failed, f"{batch.id}_error.jsonl", "batch_output")).id
        if is_cancelled:
            await self._enter(owner, batch, "cancelled", "cancelled_at")
        elif complete:
            await self._enter(owner, batch, "completed", "completed_at")
        else:
            await self._enter(owner, batch, "expired", "expired_at")
        self._cancelled.discard(batch.id)

    async def _enter(self, owner: str, batch: Batch, status: Any, since: str) -> None:
        batch.status = status
        setattr(batch, since, int(time.time()))
        await self._store.put(owner, batch)
        log.info("batch", batch=batch.id, status=status)

    def _outcomes(self, batch: Batch) -> tuple[Path, Path]:
        return self._store.path(f"{batch.id}.answers"), self._store.path(f"{batch.id}.errors")


def has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def counts(total: int, completed: int, failed: int) -> BatchRequestCounts:
    return BatchRequestCounts(total=total, completed=completed, failed=failed)
