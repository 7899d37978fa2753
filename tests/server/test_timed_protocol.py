"""The HTTP protocol: connections with many events, pipelined requests, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from server import timed_protocol
from server.__main__ import create_config
from server.app import create_app
from server.h11_bounds import MAX_TINY_CHUNKS
from server.settings import Settings
from server.timed_protocol import TimedH11Protocol, create_protocol
from tests.server.conftest import chat_request, wait_until
from tests.server.fakes import FakeEngine
from tests.server.protocol_harness import (
    CHUNKED,
    Recorder,
    build_protocol,
    receive_all,
    serve,
    serve_application,
    split_into_chunks,
)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    with serve(header_timeout=5) as port:
        yield port


async def test_no_callback_handles_many_chunks() -> None:
    app = Recorder()
    protocol, others = build_protocol(app), 0
    content = b"a" * MAX_TINY_CHUNKS
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
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
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
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
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
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
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
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await wait_until(lambda: protocol.cycle.response_complete)
    protocol.pause_writing()
    transport.get_write_buffer_size.return_value = 16_000
    protocol.resume_writing()
    await wait_until(lambda: transport.abort.called)


@pytest.mark.parametrize("name", ["bad chunk", "application that fails", "late headers"])
async def test_closed_connection_has_a_timeout_for_the_bytes_that_wait(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its response is not complete, so that no later event starts the timer."""
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError

    protocol = build_protocol(fail if name == "application that fails" else Recorder())
    transport = protocol.transport
    transport.get_write_buffer_size.return_value = 1000
    close_transport(protocol)
    sent = {"bad chunk": CHUNKED + b"zz\r\n", "application that fails": CHUNKED, "late headers": b"GET"}
    protocol.data_received(sent[name])
    if name == "late headers":
        protocol._close_late()
    await wait_until(lambda: transport.close.called)
    transport.abort.assert_not_called()
    await wait_until(lambda: transport.abort.called)
    protocol.connection_lost(None)


async def test_rest_of_a_closed_connection_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_protocol, "WRITE_TIMEOUT", 0.05)
    protocol = build_protocol(Recorder())
    transport = protocol.transport
    protocol.data_received(CHUNKED)
    protocol.pause_writing()
    transport.is_closing.return_value = True
    transport.get_write_buffer_size.return_value = 1000
    protocol.resume_writing()
    await wait_until(lambda: transport.abort.called)
    protocol.connection_lost(None)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
async def test_bad_chunk_ends_its_request_as_a_disconnect(method: bytes, caplog: pytest.LogCaptureFixture) -> None:
    messages, ended = [], asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages.append(await receive())
        await respond_early(scope, receive, send)
        ended.set()

    protocol = build_protocol(app)
    close_transport(protocol)
    protocol.data_received(CHUNKED.replace(b"POST", method) + b"zz\r\n")
    await wait_until(ended.is_set)
    await asyncio.sleep(0)
    written = b"".join(call.args[0] for call in protocol.transport.write.call_args_list)
    assert written.count(b"HTTP/1.1") == written.count(b"HTTP/1.1 400 Bad Request") == 1
    assert (b"Invalid HTTP request" in written) == (method != b"HEAD")
    assert [message["type"] for message in messages] == ["http.disconnect"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def close_transport(protocol: TimedH11Protocol) -> None:
    """Let the mocked transport report that it is closing after `close`."""
    transport = protocol.transport
    transport.close.side_effect = lambda: setattr(transport.is_closing, "return_value", True)


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

    with (
        serve_application(app, Protocol, loop=loop, lifespan="off") as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(GET)
        assert lost.wait(5)


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/health", b"evil.example", 200),
        (b"HTTP://127.0.0.1:8000/health?a=b", b"localhost", 200),
        (b"http://localhost", b"localhost", 404),
        (b"http://evil.example/health", b"localhost", 403),
        (b"http://localhost@evil.example/health", b"localhost", 403),
        (b"http:///health", b"localhost", 403),
        (b"/http://localhost/health", b"localhost", 404),
    ],
)
def test_host_of_a_url_as_target_replaces_the_host_header(port: int, target: bytes, host: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (target, host))
        assert receive_all(connection).startswith(b"HTTP/1.1 %d " % status)


async def respond_early(scope: Any, receive: Any, send: Any) -> None:
    """Respond without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_end_of_a_body_does_not_resume_a_connection_that_waits(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    protocols, ended = [], threading.Event()

    class Protocol(TimedH11Protocol):
        def connection_made(self, transport: Any) -> None:
            protocols.append(self)
            super().connection_made(transport)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["path"] == "/slow" and not ended.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)
        await respond_early(scope, receive, send)

    with (
        serve_application(app, Protocol, loop=loop, lifespan="off") as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(CHUNKED)
        while not connection.recv(4096).endswith(b"ok"):
            pass
        connection.sendall(split_into_chunks(bytes(60)) + GET.replace(b" /", b" /slow", 1) + GET)
        connection.settimeout(0.5)
        with suppress(TimeoutError):
            for _ in range(500):
                connection.sendall(bytes(1 << 16))
        size = len(protocols[0].conn._unparsed)
        ended.set()
    assert size < 1_000_000


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "rest",
    [b"0\r\n\r\n", split_into_chunks(bytes(5)) + b"zz\r\n", split_into_chunks(bytes(40))[:-5] + b"zz\r\n"],
    ids=["end of the body", "bytes that are no request", "bytes that are no chunk, after many"],
)
def test_connection_is_closed_whatever_follows_an_early_response(
    monkeypatch: pytest.MonkeyPatch, loop: str, rest: bytes
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setattr(timed_protocol, "LINGER_SECONDS", 0.3)
    options = {"loop": loop, "lifespan": "off", "timeout_keep_alive": 0.3}
    with (
        serve_application(respond_early, create_protocol(0.3), **options) as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(CHUNKED)
        while not connection.recv(4096).endswith(b"ok"):
            pass
        connection.sendall(rest)
        with suppress(ConnectionResetError):
            receive_all(connection)


def test_upgrade_to_a_websocket_is_an_http_request() -> None:
    config = create_config(create_app(Settings(), lambda _: FakeEngine()), Settings())
    config.load()
    assert issubclass(config.http_protocol_class, TimedH11Protocol)
    assert config.ws_protocol_class is None
