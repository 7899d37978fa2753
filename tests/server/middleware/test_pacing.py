"""The pace at which requests start."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from starlette.types import Receive, Scope, Send

from server.middleware.pacing import PacingMiddleware


@pytest.mark.parametrize(("path", "iterations"), [("/v1/chat/completions", 20), ("/health", 1)])
async def test_one_request_starts_in_each_iteration_of_the_event_loop(path: str, iterations: int) -> None:
    now, starts = 0, []

    async def count_iterations() -> None:
        nonlocal now
        while True:
            await asyncio.sleep(0)
            now += 1

    async def record_start(scope: Scope, receive: Receive, send: Send) -> None:
        starts.append(now)

    app = PacingMiddleware(record_start, unpaced_paths=["/health"])
    counter = asyncio.create_task(count_iterations())
    await asyncio.gather(*(app({"type": "http", "path": path}, AsyncMock(), AsyncMock()) for _ in range(20)))
    counter.cancel()
    assert len(starts) == 20
    assert len(set(starts)) == iterations
