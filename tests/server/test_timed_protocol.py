"""The HTTP protocol: bodies in tiny chunks, pipelined requests, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import h11
import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from server import timed_protocol
from server.__main__ import create_config
from server.app import create_app
from server.settings import Settings
from server.timed_protocol import TimedH11Protocol, create_protocol
from tests.server.conftest import chat_request, wait_until
from tests.server.fakes import FakeEngine
from tests.server.serving.test_unfinished_requests import receive_all, serve

CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def split_into_chunks(content: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"


def split_into_reads(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.fixture
def port() -> Iterator[int]:
    with serve(header_timeout=5) as port:
        yield port


class Recorder:
    """An application that keeps the body of its request."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more_body = True
        while more_body:
            message = await receive()
            self.body += message.get("body", b"")
            more_body = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def build_protocol(app: Any) -> TimedH11Protocol:
    config = uvicorn.Config(app, log_level="error", lifespan="off")
    protocol = create_protocol(5)(config, ServerState(), {}, asyncio.get_running_loop())
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    protocol.connection_made(transport)
    return protocol


async def test_no_callback_handles_many_chunks() -> None:
    app = Recorder()
    protocol, others = build_protocol(app), 0
    content = b"a" * timed_protocol.MAX_TINY_CHUNKS
    started_at = time.thread_time()
    protocol.data_received(CHUNKED + split_into_chunks(content))
    assert time.thread_time() - started_at < 0.05
    protocol.transport.pause_reading.assert_called_once()
    protocol.transport.resume_reading.assert_not_called()
    while len(app.body) < len(content):
        others += 1
        await asyncio.sleep(0)
    assert others > len(content) / 100
    assert app.body == content
    await asyncio.sleep(0)
    protocol.transport.resume_reading.assert_called()
    assert b"200 OK" in b"".join(call.args[0] for call in protocol.transport.write.call_args_list)


async def test_body_of_too_many_tiny_chunks_is_refused() -> None:
    app = Recorder()
    protocol = build_protocol(app)
    protocol.transport.close.side_effect = lambda: protocol.transport.is_closing.configure_mock(return_value=True)
    protocol.data_received(CHUNKED + split_into_chunks(b"a" * (timed_protocol.MAX_TINY_CHUNKS + 1)))
    written = protocol.transport.write.call_args_list
    await wait_until(lambda: bool(written))
    received = b"".join(call.args[0] for call in written)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"The body has more than 2000 chunks of fewer than 16 bytes." in received
    protocol.transport.close.assert_called_once()
    protocol.connection_lost(None)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
LARGE_HEADS = {
    "many headers": GET + b"a:\r\n" * 60_000,
    "one header too many": GET + b"a:\r\n" * timed_protocol.MAX_HEADERS,
    "headers without carriage returns": GET + b"a:\n" * timed_protocol.MAX_HEADERS,
    "long header": GET + b"a: " + b"a" * timed_protocol.MAX_HEAD_BYTES + b"\r\n",
    "many trailers": CHUNKED + b"0\r\n" + b"a:b\r\n" * 50_000,
}


@pytest.mark.parametrize("read_bytes", [1_000_000, 10_000])
@pytest.mark.parametrize("name", LARGE_HEADS)
async def test_large_headers_and_trailers_are_refused_in_any_number_of_reads(name: str, read_bytes: int) -> None:
    protocol = build_protocol(Recorder())
    protocol.transport.close.side_effect = lambda: protocol.transport.is_closing.configure_mock(return_value=True)
    started_at = time.thread_time()
    for part in split_into_reads(LARGE_HEADS[name] + b"\r\n", read_bytes):
        if not protocol.transport.is_closing():
            protocol.data_received(part)
    assert time.thread_time() - started_at < 0.02  # 60,000 headers take h11 0.1 seconds
    received = b"".join(call.args[0] for call in protocol.transport.write.call_args_list)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"The headers have more than 16 kB or 100 lines." in received
    protocol.connection_lost(None)


@pytest.mark.parametrize("read_bytes", [1_000_000, 100])
async def test_largest_headers_are_read(read_bytes: int) -> None:
    head = GET + b"a:\r\n" * (timed_protocol.MAX_HEADERS - 2)
    head += b"b: " + b"b" * (timed_protocol.MAX_HEAD_BYTES - len(head) - 7) + b"\r\n\r\n"
    assert len(head) == timed_protocol.MAX_HEAD_BYTES
    protocol = build_protocol(app := Recorder())
    protocol.transport.is_closing.return_value = False
    body = b"\n" * 200_000  # neither these lines nor those of a later request count
    for part in split_into_reads(head, read_bytes):
        protocol.data_received(part)
    await wait_until(lambda: protocol.cycle is not None and protocol.cycle.response_complete)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    protocol.data_received(post + body + GET + b"\r\n")
    await wait_until(lambda: len(app.body) == len(body))
    assert b"400" not in b"".join(call.args[0] for call in protocol.transport.write.call_args_list)
    protocol.connection_lost(None)


async def test_long_chunks_make_up_for_tiny_ones() -> None:
    app = Recorder()
    protocol, count = build_protocol(app), timed_protocol.MAX_TINY_CHUNKS
    long = b"%x\r\n%b\r\n" % (count * 17, b"b" * count * 17)
    protocol.data_received(CHUNKED + long + split_into_chunks(b"a" * (count + 1)))
    await wait_until(lambda: len(app.body) == count * 18 + 1)


async def test_lost_connection_leaves_the_queue() -> None:
    first, second = build_protocol(Recorder()), build_protocol(app := Recorder())
    second.queue = first.queue
    first.data_received(CHUNKED + split_into_chunks(b"a" * 5000))
    second.data_received(CHUNKED + split_into_chunks(b"b" * 500))
    first.transport.is_closing.return_value = True
    first.connection_lost(None)
    await wait_until(lambda: len(app.body) == 500)
    assert not first.queue


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_body_in_tiny_chunks_is_read(port: int, size: int) -> None:
    sent = CHUNKED + split_into_chunks(json.dumps(chat_request(max_tokens=1)).encode().ljust(1900))
    sent = sent + sent  # pipelined
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for start in range(0, len(sent), size * 100):
            connection.sendall(sent[start : start + size * 100])
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = receive_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b'"chat.completion"') == 2


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
def test_others_are_served_while_tiny_chunks_arrive(port: int) -> None:
    is_over = threading.Event()

    def attack() -> None:
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(CHUNKED)
            while not is_over.is_set():
                connection.sendall(b"1\r\n \r\n" * 20_000)

    threads = [threading.Thread(target=attack, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    delays = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(20):
            started_at = time.perf_counter()
            assert client.get("/health").status_code == 200
            delays.append(time.perf_counter() - started_at)
            time.sleep(0.02)
    is_over.set()
    assert sorted(delays)[-2] < 0.25  # one chunk at a time takes a second


def test_upload_in_large_chunks_is_read(port: int) -> None:
    line = b'{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {}}\n'
    content = b"".join(line % number for number in range(20_000))
    files = {"file": ("lines.jsonl", content)}
    response = httpx.post(f"http://127.0.0.1:{port}/v1/files", files=files, data={"purpose": "batch"})
    assert response.json()["bytes"] == len(content)


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
async def test_client_that_takes_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)
    protocol = build_protocol(Recorder())
    transport = protocol.transport
    transport.get_write_buffer_size.return_value = 1_000_000
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for size in (900_000, 800_000):
        await asyncio.sleep(0.03)
        transport.get_write_buffer_size.return_value = size
        await asyncio.sleep(0.03)
        transport.abort.assert_not_called()
    await asyncio.sleep(0.15)
    transport.abort.assert_called_once()


async def test_client_that_takes_a_byte_at_a_time_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)
    protocol = build_protocol(Recorder())
    transport = protocol.transport
    transport.get_write_buffer_size.return_value = 1_000_000
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    transport.get_write_buffer_size.return_value = 999_999
    await asyncio.sleep(0.1)
    transport.abort.assert_called_once()


async def test_paused_writing_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)
    protocol = build_protocol(Recorder())
    transport = protocol.transport
    protocol.data_received(CHUNKED)  # its response is not complete, so that its application may write more
    transport.get_write_buffer_size.return_value = 1000
    protocol.pause_writing()
    protocol.resume_writing()
    await asyncio.sleep(0.1)
    transport.abort.assert_not_called()
    protocol.pause_writing()
    await asyncio.sleep(0.1)
    transport.abort.assert_called_once()
    protocol.connection_lost(None)


async def test_rest_below_the_low_water_mark_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)
    protocol = build_protocol(Recorder())
    transport = protocol.transport
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await wait_until(lambda: protocol.cycle.response_complete)
    protocol.pause_writing()
    transport.get_write_buffer_size.return_value = 16_000
    protocol.resume_writing()
    await wait_until(lambda: transport.abort.called)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_unread_response_is_dropped(monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    """The response is larger than what the kernel buffers."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.2)
    lost = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    class Protocol(TimedH11Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    config = uvicorn.Config(app, port=0, http=Protocol, loop=loop, lifespan="off", log_level="error")
    server, listener = uvicorn.Server(config), config.bind_socket()
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert lost.wait(5)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def test_connection_counts_its_events() -> None:
    connection = timed_protocol.BoundedConnection()
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.next_event() is h11.NEED_DATA
    connection.events_left = 2
    assert isinstance(connection.next_event(), h11.Request)


def test_upgrade_to_a_websocket_is_an_http_request() -> None:
    config = create_config(create_app(Settings(), lambda _: FakeEngine()), Settings())
    config.load()
    assert issubclass(config.http_protocol_class, TimedH11Protocol)
    assert config.ws_protocol_class is None
