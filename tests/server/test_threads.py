"""Work in threads that is awaited to its end."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from server.threads import run_to_end


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
