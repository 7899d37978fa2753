"""Work in threads that is awaited to its end."""

from __future__ import annotations

import ast
import asyncio
import time
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import current_default_thread_limiter

from server.threads import run_to_end
from tests.server.conftest import StartServer, chat_request, image_messages

SERVER = Path(__file__).parents[2] / "server"
FILE_MODULES = {
    "batch/results.py",
    "batch/runner.py",
    "batch/store.py",
    "batch/uploads.py",
    "routes/files.py",
}


def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def test_result_and_exception_arrive() -> None:
    assert await run_to_end(work, 0.0) == 0
    with pytest.raises(ValueError, match="non-negative"):
        await run_to_end(work, -1.0)


async def test_scope_that_is_cancelled_ends_after_the_work() -> None:
    start, cpu_start = time.perf_counter(), time.thread_time()
    with anyio.move_on_after(0.01) as scope:
        await run_to_end(work, 0.2)
    assert scope.cancelled_caught
    assert time.perf_counter() - start >= 0.2
    assert time.thread_time() - cpu_start < 0.05, "the event loop must wait, not spin"


async def test_task_that_is_cancelled_ends_after_the_work() -> None:
    start = time.perf_counter()
    task = asyncio.create_task(run_to_end(work, 0.2))
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.perf_counter() - start >= 0.2


async def test_timeout_ends_after_the_work() -> None:
    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_to_end(work, 0.2)
    assert time.perf_counter() - start >= 0.2


async def test_cancelled_scope_hides_no_other_cancellation() -> None:
    async def run() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await run_to_end(work, 0.1)

    task = asyncio.create_task(run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_requests_without_files_do_not_wait_for_a_hanging_disk(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two", metrics_key="metrics")
    limiter, writes = current_default_thread_limiter(), [object() for _ in range(40)]
    for write in writes:
        limiter.acquire_on_behalf_of_nowait(write)
    trace = chat_request(messages=image_messages(), decoding={"strategy": "blind", "trace": True})
    calls = [
        server.http.get("/metrics", headers={"authorization": "Bearer metrics"}),
        server.http.post("/v1/chat/completions", json=trace, headers={"authorization": "Bearer one"}),
        *(
            server.http.get(path, headers={"authorization": "Bearer one"})
            for path in ("/openapi.json", "/v1/models", "/v1/strategies", "/v1/files", "/v1/batches")
        ),
    ]
    try:
        async with asyncio.timeout(60):
            responses = await asyncio.gather(*calls)
    finally:
        for write in writes:
            limiter.release_on_behalf_of(write)
    assert [response.status_code for response in responses] == [200] * 7


def test_only_work_on_files_has_no_limiter() -> None:
    """Anyio's own threads, which a call without a limiter uses, may all wait for the disk."""
    unlimited = {
        path.relative_to(SERVER).as_posix()
        for path in SERVER.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("run_sync", "run_to_end")
        if "limiter" not in [keyword.arg for keyword in call.keywords]
    }
    assert unlimited == FILE_MODULES
