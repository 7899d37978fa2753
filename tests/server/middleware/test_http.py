"""Request ids, the pace of requests, and security headers."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from starlette.types import Receive, Scope, Send
from structlog.typing import EventDict

from server.middleware.http import PacingMiddleware
from tests.server.conftest import FakeServer


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models"])
async def test_security_headers_are_set(server: FakeServer, path: str) -> None:
    headers = (await server.http.get(path)).headers
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


async def test_request_id_is_echoed_and_logged(server: FakeServer, log_entries: list[EventDict]) -> None:
    for path in ("/health", "/nothing"):
        response = await server.http.get(path, headers={"x-request-id": "mine_1-A"})
        assert response.headers["x-request-id"] == "mine_1-A"
    assert [entry["request_id"] for entry in log_entries if entry["event"] == "response_sent"] == ["mine_1-A"] * 2
    for bad in ("", "x" * 65, "a b", "a;b", "ü"):
        response = await server.http.get("/health", headers={b"x-request-id": bad.encode()})
        assert response.headers["x-request-id"] != bad
        assert len(response.headers["x-request-id"]) == 32


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

    app = PacingMiddleware(record_start)
    counter = asyncio.create_task(count_iterations())
    await asyncio.gather(*(app({"type": "http", "path": path}, AsyncMock(), AsyncMock()) for _ in range(20)))
    counter.cancel()
    assert len(starts) == 20
    assert len(set(starts)) == iterations
