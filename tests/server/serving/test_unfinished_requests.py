"""Requests that do not end, and the fairness between API keys."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from server.app import create_app
from server.schemas.json_bounds import JsonBoundsScanner
from server.serving import body_budget
from server.serving.body_budget import BodyBudget, BodyBuffer
from server.serving.fair_queue import FairQueue
from server.settings import Settings
from server.timed_protocol import create_protocol
from tests.server.conftest import AsgiClient, StartServer, chat_request, wait_until
from tests.server.fakes import FakeEngine

JSON = {"content-type": "application/json"}
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
)


class UnfinishedClient(AsgiClient):
    """Sends `content` and then nothing more, without ending the body."""

    def __init__(self, app: Any, content: bytes, key: str = "") -> None:
        super().__init__(app, key)
        self.body = content

    async def receive(self) -> Any:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": True}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    @property
    def error(self) -> tuple[int, str]:
        start, body = self.messages
        return start["status"], json.loads(body["body"])["error"]["code"]


async def test_unfinished_bodies_take_no_place(start_server: StartServer) -> None:
    server = await start_server(max_rows=1, max_waiting=1)
    clients = [UnfinishedClient(server.app, b'{"model": "tiny", ') for _ in range(300)]
    calls = [asyncio.create_task(client.call()) for client in clients]
    await wait_until(lambda: not any(client.body for client in clients))
    assert (await server.chat()).status_code == 200
    for client in clients:
        client.disconnect.set()
    await asyncio.gather(*calls)
    assert {client.messages[0]["status"] for client in clients} == {499}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize", "/v1/batches"])
async def test_body_has_a_timeout(start_server: StartServer, path: str) -> None:
    server = await start_server(body_timeout=0.1)

    async def pieces() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    response = await server.http.post(path, content=pieces(), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")


async def test_upload_has_a_timeout(start_server: StartServer) -> None:
    server = await start_server(body_timeout=0.1)

    async def pieces() -> Any:
        yield b"--x\r\n"
        await asyncio.sleep(5)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = await server.http.post("/v1/files", content=pieces(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")


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


async def test_disconnect_during_a_body_is_no_failure(start_server: StartServer) -> None:
    server = await start_server()
    client = UnfinishedClient(server.app, b"{")
    client.disconnect.set()
    await client.call()
    assert client.messages[0]["status"] == 499


async def test_one_key_holds_only_its_share(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, api_keys="one,two", max_rows=2, max_waiting=2, key_share=0.5)

    async def chat(key: str, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await server.http.post("/v1/chat/completions", json=chat_request(**fields), headers=headers)

    calls = [asyncio.create_task(chat("one")) for _ in range(2)]
    await wait_until(lambda: server.app.state.service.active_by_owner.total() == 2 and engine.running == 1)
    refused = await chat("one", max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert (await chat("two", max_tokens=1)).status_code == 200
    assert engine.running == 1  # the second request of the first key waits for the first one
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_only_key_holds_everything(start_server: StartServer) -> None:
    engine = FakeEngine(words=["word "] * 1000, pause=0.01)
    server = await start_server(engine, api_keys="one", max_rows=2, max_waiting=1, key_share=0.3)
    server.http.headers["authorization"] = "Bearer one"
    calls = [asyncio.create_task(server.chat()) for _ in range(2)]
    await wait_until(lambda: engine.running == 2)
    assert (await server.chat(max_tokens=1)).status_code == 200
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


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


async def test_keys_take_turns() -> None:
    queue, order = FairQueue(2), list[str]()

    async def work(owner: str, rows: int) -> None:
        held = await queue.acquire(owner, rows)
        order.append(owner)
        await asyncio.sleep(0.01)
        queue.release(owner, held)

    tasks = [asyncio.create_task(work("first", 1)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work("second", 1)) for _ in range(2)]
    tasks += [asyncio.create_task(work("third", 99))]
    await asyncio.sleep(0)
    cancelled = tasks[5]
    cancelled.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order[:3] == ["first", "first", "second"]
    assert sorted(order) == ["first"] * 5 + ["second"] * 2 + ["third"]
    assert await asyncio.wait_for(queue.acquire("fourth", 2), 1) == 2


async def test_rows_of_a_key_are_bounded() -> None:
    queue = FairQueue(6, max_owner_units=2)
    for _ in range(2):
        await queue.acquire("first", 1)
    waiting = asyncio.create_task(queue.acquire("first", 1))
    assert await asyncio.wait_for(queue.acquire("second", 4), 1) == 4  # more than its share, but it holds none
    assert not waiting.done()
    queue.release("first", 1)
    assert await asyncio.wait_for(waiting, 1) == 1


@contextmanager
def serve(header_timeout: float) -> Iterator[int]:
    """Serve a fake engine on a port."""
    app = create_app(Settings(served_name="tiny", playground="off"), lambda _: FakeEngine())
    config = uvicorn.Config(app, port=0, http=create_protocol(header_timeout), log_level="error")
    server, listener = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not app.state.service.is_startup_finished:
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def receive_all(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [(b"", b""), (b"POST /v1/chat/completions HTTP/1.1\r\nHost:", b"HTTP/1.1 408")],
    ids=["nothing", "half"],
)
def test_headers_have_a_timeout(sent: bytes, answer: bytes) -> None:
    with serve(header_timeout=0.3) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        assert receive_all(connection)[: len(answer)] == answer


def test_headers_of_a_later_request_have_a_timeout() -> None:
    with serve(header_timeout=0.3) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # an idle connection is kept
        for byte in b"GET /health HTTP":
            connection.sendall(bytes([byte]))
            time.sleep(0.01)
        assert b"408" in receive_all(connection)


def test_rest_of_a_refused_body_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.timed_protocol.LINGER_SECONDS", 0.3)
    with serve(header_timeout=5) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD.replace(b"POST /v1/chat/completions", b"GET /health"))
        assert b"200 OK" in receive_all(connection)


def test_body_that_arrives_slowly_is_read() -> None:
    body = json.dumps(chat_request()).encode().ljust(5000)
    with serve(header_timeout=0.2) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD)
        for start in range(0, 5000, 1000):
            time.sleep(0.1)
            connection.sendall(body[start : start + 1000])
        connection.settimeout(5)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
