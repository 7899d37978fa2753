"""The memory for the bodies of all requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from decoding.errors import Overloaded
from server.middleware import body_budget
from server.middleware.body_budget import BodyBudget, BodyBuffer
from server.schemas.json_bounds import JsonBoundsScanner
from tests.server.conftest import StartServer, chat_request, wait_until
from tests.server.fakes import FakeEngine
from tests.server.unfinished_client import UnfinishedClient


async def test_largest_unfinished_body_makes_room(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start_server(max_body_mb=2, max_buffered_mb=2)
    budget = server.app.state.service.body_budget
    clients = [UnfinishedClient(server.app, b'{"a": "' + bytes([65]) * size) for size in (1_200_000, 700_000)]
    calls = [asyncio.create_task(client.call()) for client in clients]
    await wait_until(lambda: budget.used_bytes > 1_900_000)
    response = await server.chat(messages=[{"role": "user", "content": "word " * 60_000}])
    assert response.status_code == 200
    await calls[0]
    assert clients[0].error == (429, "body_memory_full")
    assert not calls[1].done()
    refused = await server.chat(messages=[{"role": "user", "content": "x" * 1_900_000}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "body_memory_full")
    assert refused.headers["retry-after"] == "1"
    monkeypatch.setattr(BodyBuffer, "is_stalled", lambda *_: True)
    assert (await server.chat(messages=[{"role": "user", "content": "x" * 1_900_000}])).status_code == 200
    await calls[1]
    assert (clients[1].error, budget.used_bytes) == ((429, "body_memory_full"), 0)


async def test_running_request_holds_no_body(start_server: StartServer) -> None:
    engine = FakeEngine(pause=0.05)
    server = await start_server(engine)
    call = asyncio.create_task(server.chat(messages=[{"role": "user", "content": "x" * 100_000}]))
    await wait_until(lambda: engine.running == 1)
    assert server.app.state.service.body_budget.used_bytes == 0
    assert (await call).status_code == 200


async def test_key_makes_room_among_its_own_bodies(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two", max_body_mb=2, max_buffered_mb=5, key_share=0.4)
    budget = server.app.state.service.body_budget
    clients = [UnfinishedClient(server.app, b'{"a": "' + bytes([65]) * 1_200_000, key) for key in ("one", "two")]
    calls = [asyncio.create_task(client.call()) for client in clients]
    await wait_until(lambda: budget.used_bytes > 2_400_000)
    messages = [{"role": "user", "content": "x" * 1_000_000}]
    headers = {"authorization": "Bearer one"}
    response = await server.http.post("/v1/chat/completions", json=chat_request(messages=messages), headers=headers)
    assert response.status_code == 200
    await calls[0]
    assert clients[0].error == (429, "body_memory_full")
    assert not calls[1].done()
    clients[1].disconnect.set()
    await calls[1]
    assert not budget.bytes_by_owner


async def test_single_bytes_do_not_keep_a_body_from_stalling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "STALL_SECONDS", 0.1)
    buffer, loop = BodyBuffer(BodyBudget(10_000_000), ""), asyncio.get_running_loop()
    scanner = JsonBoundsScanner()
    await buffer._add(b'"' + b"a" * 850_000, scanner)
    assert not buffer.is_stalled(loop.time())
    for _ in range(10):
        await asyncio.sleep(0.02)
        await buffer._add(b"a", scanner)
    await asyncio.sleep(0.001)
    assert buffer.is_stalled(loop.time())
    await buffer._add(b"a" * 850_000, scanner)
    assert not buffer.is_stalled(loop.time())


async def test_body_refused_behind_the_lock_is_not_returned_without_its_start() -> None:
    budget = BodyBudget(300_000)
    refused, other = BodyBuffer(budget, ""), BodyBuffer(budget, "")
    parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    reading = asyncio.create_task(refused.read(Request({"type": "http"}, parts.get)))
    parts.put_nowait({"type": "http.request", "body": b'"' + b"a" * 200_000, "more_body": True})
    await wait_until(lambda: budget.used_bytes > 200_000)
    growing = asyncio.create_task(other._add(b'"' + b"b" * 150_000, JsonBoundsScanner()))  # scanned in three slices
    await asyncio.sleep(0)
    parts.put_nowait({"type": "http.request", "body": b'"', "more_body": False})
    await asyncio.gather(growing, asyncio.wait([reading]))
    with pytest.raises(Overloaded):
        reading.result()
    assert (refused.content, budget.used_bytes) == (b"", 150_001)


async def test_iteration_of_the_event_loop_searches_for_the_largest_body_once() -> None:
    budget, iteration, iterations = BodyBudget(100_000), 0, []
    stalled = [BodyBuffer(budget, "") for _ in range(10)]
    reading = []
    for buffer in stalled:
        parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        parts.put_nowait({"type": "http.request", "body": b'"' + b"a" * 9_000, "more_body": True})
        reading.append(asyncio.create_task(buffer.read(Request({"type": "http"}, parts.get))))
    await wait_until(lambda: budget.used_bytes > 90_000)
    for buffer in stalled:
        buffer._stalls_at = 0.0
        refuse = buffer.refuse
        buffer.refuse = lambda refuse=refuse: (iterations.append(iteration), refuse())  # type: ignore[method-assign,misc]

    async def count() -> None:
        nonlocal iteration
        while True:
            iteration += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    growing = [BodyBuffer(budget, "") for _ in range(8)]
    await asyncio.gather(*(buffer._add(b'"' + b"b" * 12_000, JsonBoundsScanner()) for buffer in growing))
    for task in (counting, *reading):
        task.cancel()
    await asyncio.wait(reading)
    assert len(iterations) >= 8
    assert len(set(iterations)) >= 8
    assert budget.used_bytes <= 100_000


async def test_body_whose_time_has_just_ended_can_be_refused() -> None:
    budget = BodyBudget(100_000)
    late, other = BodyBuffer(budget, ""), BodyBuffer(budget, "")
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        async with late._timeout:
            late._timeout.reschedule(loop.time())
            await asyncio.Event().wait()

    await late._add(b'"' + b"a" * 60_000, JsonBoundsScanner())
    budget.unfinished.add(late)
    late._stalls_at = 0.0
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    while late._timeout._state.value != "expiring":  # noqa: ASYNC110
        await asyncio.sleep(0)
    await other._add(b'"' + b"b" * 60_000, JsonBoundsScanner())
    with pytest.raises(TimeoutError):
        await waiting
    assert budget.used_bytes == 60_001
