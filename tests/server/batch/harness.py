"""Batches of a test server: their lines, status and results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

from openai.types import Batch

from tests.server.conftest import FakeServer, image_messages

Result = TypeVar("Result")

CHAT = "/v1/chat/completions"


def make_line(number: int, url: str = CHAT, **fields: Any) -> str:
    body = {"model": "tiny", "messages": image_messages()} if url == CHAT else {"model": "tiny"}
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body | fields})


async def create_batch(server: FakeServer, *lines: str, endpoint: Any = CHAT) -> Batch:
    content = "\n".join(lines).encode()
    file = await server.openai.files.create(file=("questions.jsonl", content), purpose="batch")
    return await server.openai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


async def wait_for_status(server: FakeServer, batch: Batch, *statuses: str) -> Batch:
    async with asyncio.timeout(60):  # only against a hang
        while batch.status not in (statuses or ("completed", "failed", "cancelled", "expired")):
            await asyncio.sleep(0.01)
            batch = await server.openai.batches.retrieve(batch.id)
    return batch


async def read_results(server: FakeServer, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    content = (await server.openai.files.content(file_id)).content
    results = [json.loads(text) for text in content.splitlines()]
    return {result["custom_id"]: result["response"] for result in results}


async def stop(server: FakeServer) -> None:
    """Stop the batches and release the data folder, as the end of the process does."""
    await server.app.state.batch_runner.close()
    await server.app.state.batch_store.close()


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_steps(steps: Generator[None, None, Result]) -> Result:
    """Run sliced work to its end, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
