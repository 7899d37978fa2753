"""Lines of batches wait for rows and for the memory for their images."""

from __future__ import annotations

import asyncio

from PIL import Image

from tests.server.batch.harness import create_batch, make_line, wait_for_status
from tests.server.conftest import StartServer, data_url, image_messages, wait_until
from tests.server.fakes import FakeEngine


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


async def test_line_and_request_do_not_wait_for_each_other(start_server: StartServer) -> None:
    """With rows before images for one of them, a line holds the rows and a request the memory for images."""
    server = await start_server(
        FakeEngine(words=["word "] * 10, pause=0.005),
        api_keys="one,two",
        max_rows=4,
        image_memory_mb=16,
        image_cache_mb=0,
        batch_requests=4,
    )
    server.openai.api_key, server.http.headers["authorization"] = "one", "Bearer one"
    messages = image_messages(data_url(Image.new("RGB", (1000, 1000))))  # 4 MB each, of a share of 8
    batch = await create_batch(server, *(make_line(number, messages=messages) for number in range(12)))
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(server.chat(messages=messages) for _ in range(6)))
        batch = await wait_for_status(server, batch)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 12


async def test_waiting_line_of_a_cancelled_batch_is_dropped(start_server: StartServer) -> None:
    server = await start_server(max_rows=1)
    async with server.app.state.service.batch_queue.hold("another", 1):
        batch = await create_batch(server, make_line(1), make_line(2))
        await wait_until(lambda: server.app.state.service.batch_queue.count_waiting("") == 2)
        await server.openai.batches.cancel(batch.id)
    batch = await wait_for_status(server, batch)
    assert batch.status == "cancelled"
    assert not server.engine.requests


async def test_line_that_waits_for_rows_of_batches_holds_nothing_else(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two", max_rows=4, image_memory_mb=16, image_cache_mb=0)
    server.openai.api_key, server.http.headers["authorization"] = "one", "Bearer one"
    service, messages = server.app.state.service, image_messages(data_url(Image.new("RGB", (1000, 1000))))
    async with service.batch_queue.hold("another", 3):
        batch = await create_batch(server, *(make_line(number, messages=messages) for number in range(4)))
        await wait_until(lambda: bool(service.batch_queue._waiting))
        response = await asyncio.wait_for(server.chat(messages=messages, n=2), 10)
        assert response.status_code == 200
        assert not service.fair_queue._held
    assert (await wait_for_status(server, batch)).status == "completed"


async def test_line_that_waits_for_images_is_dropped_with_its_batch(start_server: StartServer) -> None:
    server = await start_server(image_memory_mb=16, image_cache_mb=0)
    memory = server.app.state.service.image_loader.memory
    messages = image_messages(data_url(Image.new("RGB", (1000, 1000))))
    with memory.lease(None) as lease:
        await lease.reserve(16_000_000)
        batch = await create_batch(server, *(make_line(number, messages=messages) for number in range(3)))
        await wait_until(lambda: memory._queue.count_waiting("") == 3)
        await server.openai.batches.cancel(batch.id)
    batch = await wait_for_status(server, batch)
    assert batch.status == "cancelled"
    assert not server.engine.requests
