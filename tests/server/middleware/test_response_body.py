"""Large responses: their parts, their share of the memory, and the time in which clients read them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from decoding.errors import Overloaded
from server.middleware import body_budget, response_body
from server.middleware.body_budget import BodyBudget
from server.middleware.response_body import PART_BYTES, ResponseBodyMiddleware
from tests.server.conftest import AsgiClient, StartServer, wait_until
from tests.server.fakes import FakeEngine

LONG_WORD = "x" * 200_000
KEYS = {"api_keys": "one,two", "max_rows": 4, "max_waiting": 4}


ALL = 1000  # parts


@pytest.fixture(autouse=True)
def _prevent_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "STALL_SECONDS", 100)  # a busy machine may take seconds


class SlowClient:
    """Requests a response of a size, and reads as many parts as it may."""

    def __init__(self, budget: BodyBudget, size: int, owner: str = "", parts: int = 0) -> None:
        self.messages: list[Any] = []
        self._unread = asyncio.Semaphore(parts)
        app = ResponseBodyMiddleware(Response(b"a" * size), budget)
        self.call = asyncio.create_task(app({"type": "http", "state": {"owner": owner}}, self._receive, self._send))

    async def _receive(self) -> Any:
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)
        if message.get("body"):
            await self._unread.acquire()

    def read(self, parts: int) -> None:
        for _ in range(parts):
            self._unread.release()

    @property
    def sizes(self) -> list[int]:
        return [len(message["body"]) for message in self.messages[1:]]


class SlowAsgiClient(AsgiClient):
    """Reads only while `can_read` is set."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.can_read = asyncio.Event()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message.get("body"):
            await self.can_read.wait()


async def test_small_response_is_one_message() -> None:
    budget = BodyBudget(1)
    client = SlowClient(budget, PART_BYTES, parts=ALL)
    await client.call
    assert client.sizes == [PART_BYTES]
    assert not client.messages[1].get("more_body", False)


async def test_large_response_is_sent_in_parts_and_counts_until_it_is_read() -> None:
    budget = BodyBudget(1_000_000)
    client = SlowClient(budget, 2 * PART_BYTES + 1)
    await wait_until(lambda: bool(client.sizes))
    assert (client.sizes, budget.used_bytes) == ([PART_BYTES], 2 * PART_BYTES + 1)
    client.read(ALL)
    await client.call
    assert client.sizes == [PART_BYTES, PART_BYTES, 1]
    assert [message["more_body"] for message in client.messages[1:]] == [True, True, False]
    assert not budget.bytes_by_owner
    assert (client.messages[0]["status"], budget.unfinished) == (200, set())


async def test_client_that_reads_too_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_body, "READ_TIMEOUT", 0.05)
    budget = BodyBudget(10_000_000)
    client = SlowClient(budget, 1_000_000)
    with pytest.raises(ClientDisconnect):
        await client.call
    assert (client.sizes, budget.used_bytes) == ([PART_BYTES], 0)


async def test_response_gets_more_time_for_what_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_body, "READ_TIMEOUT", 1)
    monkeypatch.setattr(response_body, "MIN_BYTES_PER_SECOND", 1000)  # the first part is worth a minute
    client = SlowClient(BodyBudget(10_000_000), 5 * PART_BYTES)
    await wait_until(lambda: bool(client.sizes))
    client.read(1)
    await asyncio.sleep(1.1)
    assert not client.call.done()
    client.read(ALL)
    await client.call


async def test_response_beyond_the_memory_is_refused_before_its_status() -> None:
    budget = BodyBudget(1_000_000)
    first, second = SlowClient(budget, 700_000), SlowClient(budget, 700_000)
    with pytest.raises(Overloaded):
        await second.call
    assert second.messages == []
    first.read(ALL)
    await first.call
    third = SlowClient(budget, 2_000_000, parts=ALL)  # a key can always have one
    await third.call
    assert sum(third.sizes) == 2_000_000


async def test_stalled_response_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "STALL_SECONDS", 0.05)
    budget = BodyBudget(1_000_000)
    stalled = SlowClient(budget, 700_000)
    await asyncio.sleep(0.1)
    other = SlowClient(budget, 800_000, parts=ALL)
    await other.call
    with pytest.raises(ClientDisconnect):
        await stalled.call
    assert not budget.bytes_by_owner


async def test_key_with_a_full_share_leaves_the_memory_to_others() -> None:
    budget = BodyBudget(1_000_000, 500_000)
    held = SlowClient(budget, 400_000, "one")
    with pytest.raises(Overloaded):
        await SlowClient(budget, 450_000, "one").call
    await SlowClient(budget, 400_000, "two", parts=ALL).call
    held.read(ALL)
    await held.call


async def test_unread_response_keeps_its_request_active_but_no_rows(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(words=[LONG_WORD]), **KEYS)
    service = server.app.state.service
    client = SlowAsgiClient(server.app, "one")
    call = asyncio.create_task(client.call())
    await wait_until(lambda: len(client.messages) == 2)
    assert len(client.messages[1]["body"]) == PART_BYTES
    assert (service.active_requests, service.response_budget.used_bytes > 200_000) == (1, True)
    assert service.fair_queue.is_free("two", 6)  # all units
    client.can_read.set()
    await call
    assert (service.active_requests, service.response_budget.used_bytes) == (0, 0)


async def test_refused_response_has_the_error_body(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(words=[LONG_WORD]), max_buffered_mb=20)
    server.app.state.service.response_budget.max_bytes = 300_000
    client = SlowAsgiClient(server.app)
    call = asyncio.create_task(client.call())
    await wait_until(lambda: len(client.messages) == 2)
    response = await server.chat(n=2)  # larger than the first, which would otherwise be refused if it has a byte more
    assert (response.status_code, response.json()["error"]["code"]) == (429, "response_memory_full")
    assert response.headers["retry-after"] == "1"
    client.can_read.set()
    await call
    assert (await server.chat()).status_code == 200


async def test_large_event_of_a_stream_is_sent_in_parts(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(words=[LONG_WORD]))
    client = AsgiClient(server.app, stream=True)
    await client.call()
    bodies = [message["body"] for message in client.messages[1:]]
    assert max(map(len, bodies)) == PART_BYTES
    assert LONG_WORD.encode() in b"".join(bodies)
    assert [message["more_body"] for message in client.messages[1:]] == [True] * (len(bodies) - 1) + [False]
