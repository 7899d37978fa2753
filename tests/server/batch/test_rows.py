"""Lines of batches share the engine's rows with requests of clients."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.batch.harness import create_batch, make_line, wait_for_status
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.fakes import FakeEngine


async def start_batch(server: FakeServer, engine: FakeEngine, rows: int, **fields: int) -> list[int]:
    """Start a batch of eight lines and wait until it fills its rows. Return the list of the rows that run over time."""
    await create_batch(server, *(make_line(number, **fields) for number in range(8)))
    await wait_until(lambda: engine.running == rows)
    running = []
    for _ in range(10):
        await asyncio.sleep(0.01)
        running.append(engine.running)
    return running


@pytest.mark.parametrize("fields", [{}, {"n": 3}])
async def test_batch_leaves_rows_to_requests(start_server: StartServer, fields: dict[str, int]) -> None:
    engine = FakeEngine(words=["word "] * 100, pause=0.01)
    server = await start_server(engine, max_rows=4)
    assert set(await start_batch(server, engine, 3, **fields)) == {3}
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_batch_has_the_share_of_its_key(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 100, pause=0.01)
    server = await start_server(engine, max_rows=4, api_keys="one,two", key_share=0.25)
    server.openai.api_key, server.http.headers["authorization"] = "one", "Bearer two"
    assert set(await start_batch(server, engine, 1)) == {1}
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_line_of_many_rows_is_answered(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(), max_rows=4, api_keys="one,two", key_share=0.25)
    server.openai.api_key = "one"
    lines = [make_line(number, n=4) for number in range(3)] + [make_line(4, model="nonsense")]
    batch = await wait_for_status(server, await create_batch(server, *lines))
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)


async def test_waiting_line_does_not_time_out(start_server: StartServer) -> None:
    server = await start_server(max_rows=1, request_timeout=1)
    queue = server.app.state.service.batch_queue
    async with queue.hold("another", 1):
        batch = await create_batch(server, make_line(1))
        await asyncio.sleep(1.2)
    batch = await wait_for_status(server, batch)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, server.engine.running) == (1, 0)
