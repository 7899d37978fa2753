"""Connections to the HTTP protocol: over a mocked transport, and to a server with a fake engine on a port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import uvicorn
from uvicorn.server import ServerState

from server.app import create_app
from server.settings import Settings
from server.timed_protocol import TimedH11Protocol, create_protocol
from tests.server.fakes import FakeEngine

CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def split_into_chunks(content: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"


class Recorder:
    """An application that keeps the bodies of its requests, and their number."""

    def __init__(self) -> None:
        self.body = b""
        self.count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
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
    transport.is_reading.side_effect = lambda: transport.pause_reading.call_count <= transport.resume_reading.call_count
    transport.get_write_buffer_size.return_value = 0
    protocol.connection_made(transport)
    return protocol


@contextmanager
def serve(header_timeout: float) -> Iterator[int]:
    """Serve a fake engine on a port."""
    app = create_app(Settings(served_name="tiny", playground="off"), lambda _: FakeEngine())
    with serve_application(app, create_protocol(header_timeout)) as port:
        while not app.state.service.is_startup_finished:
            time.sleep(0.01)
        yield port


@contextmanager
def serve_application(app: Any, protocol: type[TimedH11Protocol], **options: Any) -> Iterator[int]:
    """Serve an application on a port, with options of uvicorn."""
    config = uvicorn.Config(app, port=0, http=protocol, log_level="critical", **options)
    server, listener = uvicorn.Server(config), config.bind_socket()
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
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
