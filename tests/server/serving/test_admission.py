"""Admission: refusals while the queue is full."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.conftest import AsgiClient, FakeServer, StartServer, image_messages, wait_until
from tests.server.fakes import FakeEngine


async def test_full_queue_refuses_before_parsing(server: FakeServer) -> None:
    server.engine.is_full = True
    response = await server.chat(model="other", messages=image_messages())
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_active_requests_are_limited_to_rows_and_queue(start_server: StartServer, stream: bool) -> None:
    """A burst of requests must not be parsed, and its images decoded, before the refusal."""
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, max_rows=1, max_waiting=1)
    clients = [AsgiClient(server.app, stream=stream) for _ in range(2)]
    calls = [asyncio.create_task(client.call()) for client in clients]
    await wait_until(lambda: engine.running == 2)
    headers = {"content-type": "application/json"}
    refused = await server.http.post("/v1/chat/completions", content=b"nonsense", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    for client in clients:
        client.disconnect.set()
    await asyncio.gather(*calls)
    assert (await server.chat(max_tokens=1)).status_code == 200
