"""Faults of the storage, and waiting for their effects."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from openai.types import Batch

from tests.server.batch.harness import make_line, read_results, wait_for_status
from tests.server.conftest import FakeServer

FULL = OSError(errno.ENOSPC, "No space left on device")
LINES = [make_line(number) for number in range(12)]
ALL_IDS = {f"line-{number}" for number in range(12)}


class FaultyCalls:
    """Replaces a function. While `failure` is set, calls after the first `allowed` raise it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.failure: BaseException | None = None
        self.allowed = 0
        self.failed = 0

    def __call__(self, *values: Any, **fields: Any) -> Any:
        self.allowed -= 1
        if self.failure is not None and self.allowed < 0:
            self.failed += 1
            raise self.failure
        return self.function(*values, **fields)


async def wait_for_reason(server: FakeServer, batch: Batch) -> str | None:
    """Wait until the batch object has a reason, and return its code. The batch must be unfinished."""
    async with asyncio.timeout(60):  # only against a hang
        while not (batch.errors and batch.errors.data):
            await asyncio.sleep(0.01)
            batch = await server.openai.batches.retrieve(batch.id)
    assert batch.status in ("validating", "in_progress")
    return batch.errors.data[0].code


async def create_batch_that_waits(server: FakeServer, fsync: FaultyCalls) -> Batch:
    """Create a batch of `LINES`, which waits for the disk after two answers."""
    file = await server.openai.files.create(file=("a.jsonl", "\n".join(LINES).encode()), purpose="batch")
    fsync.failure, fsync.allowed = FULL, 3
    batch = await server.openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    await wait_for_reason(server, batch)
    return await server.openai.batches.retrieve(batch.id)


async def assert_complete(server: FakeServer, batch: Batch) -> None:
    batch = await wait_for_status(server, batch)
    assert (batch.status, batch.errors) == ("completed", None)
    assert set(await read_results(server, batch.output_file_id)) == ALL_IDS
