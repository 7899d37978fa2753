"""Works batches off beside the requests of clients, one batch after the other, and goes on after a restart."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
from anyio.to_thread import run_sync
from openai.types import Batch
from openai.types.batch import Errors

from decoding.errors import BadRequest, EngineFailed, Overloaded
from server import asking, chat, responses, text
from server.asking import Asked
from server.batch.lines import Line, answered, done, flaws, line_of, lines, refused
from server.batch.store import UNFINISHED, Store
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
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        self._wake.set()

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
                await self._enter(owner, batch, "failed")
            except Exception as unwritten:
                log.error("a batch waits for the next start", batch=batch.id, exc_info=unwritten)

    async def _run(self, owner: str, batch: Batch) -> None:
        source = self._store.path(batch.input_file_id)
        if batch.status == "validating":
            count, found = await run_sync(flaws, source, batch.endpoint)
            if found:
                errors = Errors(data=found, object="list").model_dump()
                await self._enter(owner, batch, "failed", errors=errors)
                return
            batch = await self._enter(owner, batch, "in_progress", request_counts=counts(count, 0, 0))
        if batch.status == "in_progress":
            batch = await self._ask_all(owner, batch, source)
        await self._finish(owner, batch)

    async def _ask_all(self, owner: str, batch: Batch, source: Path) -> Batch:
        """The batch as it is then."""
        said, failed = (self._store.path(identity) for identity in outcomes_of(batch))
        answers, errors = await run_sync(done, said), await run_sync(done, failed)
        total = batch.request_counts.total if batch.request_counts else 0
        asked = (line_of(text, batch.endpoint) for text in lines(source))
        left = (line for line in asked if line.custom_id not in answers and line.custom_id not in errors)
        now, turn = batch, asyncio.Lock()

        async def following() -> Line | None:
            """Off the event loop: there may be many megabytes of answered lines before it."""
            async with turn:
                return await run_sync(next, left, None)

        with said.open("ab") as ends_well, failed.open("ab") as ends_badly:
            tallied = [len(answers), len(errors)]

            async def tally() -> None:
                nonlocal now
                changed = await self._store.change(owner, batch.id, *UNFINISHED, request_counts=counts(total, *tallied))
                now = changed or now

            async def hands() -> None:
                while (line := await following()) is not None:
                    if now.status == "cancelling" or (now.expires_at or 0) < time.time():
                        return
                    outcome, is_answer = await self._ask(line, batch)
                    file = ends_well if is_answer else ends_badly
                    file.write(outcome)
                    file.flush()
                    tallied[not is_answer] += 1
                    await tally()

            await tally()
            await self._some_at_a_time(hands)
        return now

    async def _some_at_a_time(self, hands: Callable[[], Coroutine[Any, Any, None]]) -> None:
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
                asked = await run_sync(asked_by, line, batch.endpoint)
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
        """A server that dies in here does it once more, and the same comes of it."""
        tally = batch.request_counts
        is_complete = tally is not None and tally.completed + tally.failed == tally.total
        status = "cancelled" if batch.status == "cancelling" else "completed" if is_complete else "expired"
        output, error = outcomes_of(batch)
        await self._enter(
            owner,
            batch,
            status,
            output_file_id=await self._kept(owner, output, f"{batch.id}_output.jsonl"),
            error_file_id=await self._kept(owner, error, f"{batch.id}_error.jsonl"),
        )

    async def _kept(self, owner: str, identity: str, filename: str) -> str | None:
        """The id of the file, if there is anything in it."""
        if not await run_sync(has_content, self._store.path(identity)):
            return None
        return (await self._store.keep(owner, identity, filename, "batch_output")).id

    async def _enter(self, owner: str, batch: Batch, status: str, **fields: Any) -> Batch:
        """What the batch is then: none is in progress that was cancelled meanwhile."""
        among = ("validating",) if status == "in_progress" else UNFINISHED
        fields = {"status": status, f"{status}_at": int(time.time()), **fields}
        entered = await self._store.change(owner, batch.id, *among, **fields)
        batch = entered or await self._store.batch(owner, batch.id)
        log.info("batch", batch=batch.id, status=batch.status)
        return batch


def asked_by(line: Line, endpoint: str) -> Asked:
    """Raises: BadRequest."""
    return READERS[endpoint](json.dumps(line.body).encode())


def outcomes_of(batch: Batch) -> tuple[str, str]:
    """The ids of its files of answers and of refusals, written where they stay: no death of the server parts them."""
    name = batch.id.removeprefix("batch_")
    return f"file-{name}-output", f"file-{name}-error"


def has_content(path: Path) -> bool:
    """An empty file is taken away."""
    if path.exists() and path.stat().st_size == 0:
        path.unlink()
    return path.exists()


def counts(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}
