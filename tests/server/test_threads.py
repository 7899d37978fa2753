"""Work in threads that is awaited to its end."""

from __future__ import annotations

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
    start = time.perf_counter()
    with anyio.move_on_after(0.01) as scope:
        await run_to_end(work, 0.2)
    assert scope.cancelled_caught
    assert time.perf_counter() - start >= 0.2
