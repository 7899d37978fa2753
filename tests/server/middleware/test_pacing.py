"""The pace at which requests start."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from starlette.types import Receive, Scope, Send

from server.middleware.pacing import PacingMiddleware


@pytest.mark.parametrize(("path", "iterations"), [("/v1/chat/completions", 48), ("/health", 3)])
async def test_few_requests_start_in_each_iteration_of_the_event_loop(path: str, iterations: int) -> None:
    now, starts = 0, []

    async def count_iterations() -> None:
        nonlocal now
        while True:
            await asyncio.sleep(0)
            now += 1

    async def record_start(scope: Scope, receive: Receive, send: Send) -> None:
        starts.append(now)

    app = PacingMiddleware(record_start, quick_paths=["/health"])
    counter = asyncio.create_task(count_iterations())
    await asyncio.gather(*(app({"type": "http", "path": path}, AsyncMock(), AsyncMock()) for _ in range(48)))
    counter.cancel()
    assert len(starts) == 48
    assert len(set(starts)) == iterations


async def test_quick_path_does_not_wait_for_others() -> None:
    started = []

    async def record_start(scope: Scope, receive: Receive, send: Send) -> None:
        started.append(scope["path"])

    app = PacingMiddleware(record_start, quick_paths=["/health"])
    paths = ["/v1/chat/completions"] * 20 + ["/health"]
    await asyncio.gather(*(app({"type": "http", "path": path}, AsyncMock(), AsyncMock()) for path in paths))
    assert started.index("/health") <= 1
