"""Requests that do not end: bodies and headers that stop or arrive slowly."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from tests.server.conftest import StartServer, chat_request, wait_until
from tests.server.protocol_harness import receive_all, serve
from tests.server.unfinished_client import UnfinishedClient

JSON = {"content-type": "application/json"}
HEADERS = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEADERS


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


async def test_disconnect_during_a_body_is_no_failure(start_server: StartServer) -> None:
    server = await start_server()
    client = UnfinishedClient(server.app, b"{")
    client.disconnect.set()
    await client.call()
    assert client.messages[0]["status"] == 499


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
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
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
