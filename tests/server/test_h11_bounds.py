"""Bounds on headers, trailers and bodies in tiny chunks."""

from __future__ import annotations

import time

import h11
import pytest

from server import h11_bounds
from tests.server.conftest import wait_until
from tests.server.protocol_harness import CHUNKED, Recorder, build_protocol, split_into_chunks


def split_into_reads(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def test_body_of_too_many_tiny_chunks_is_refused() -> None:
    app = Recorder()
    protocol = build_protocol(app)
    protocol.transport.close.side_effect = lambda: protocol.transport.is_closing.configure_mock(return_value=True)
    protocol.data_received(CHUNKED + split_into_chunks(b"a" * (h11_bounds.MAX_TINY_CHUNKS + 1)))
    written = protocol.transport.write.call_args_list
    await wait_until(lambda: bool(written))
    received = b"".join(call.args[0] for call in written)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"The body has more than 2000 chunks of fewer than 16 bytes." in received
    protocol.transport.close.assert_called_once()
    protocol.connection_lost(None)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
LARGE_HEADS = {
    "many headers": GET + b"a:\r\n" * 60_000,
    "one header too many": GET + b"a:\r\n" * h11_bounds.MAX_HEADERS,
    "headers without carriage returns": GET + b"a:\n" * h11_bounds.MAX_HEADERS,
    "long header": GET + b"a: " + b"a" * h11_bounds.MAX_HEAD_BYTES + b"\r\n",
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
    head = GET + b"a:\r\n" * (h11_bounds.MAX_HEADERS - 2)
    head += b"b: " + b"b" * (h11_bounds.MAX_HEAD_BYTES - len(head) - 7) + b"\r\n\r\n"
    assert len(head) == h11_bounds.MAX_HEAD_BYTES
    protocol = build_protocol(app := Recorder())
    protocol.transport.is_closing.return_value = False
    body = b"\n" * 200_000  # neither these lines nor those of a later request count
    for part in split_into_reads(head, read_bytes):
        protocol.data_received(part)
    await wait_until(lambda: protocol.cycle is not None and protocol.cycle.response_complete)
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    protocol.data_received(post + body + GET + b"\r\n")
    await wait_until(lambda: len(app.body) == len(body))
    assert b"400" not in b"".join(call.args[0] for call in protocol.transport.write.call_args_list)
    protocol.connection_lost(None)


async def test_long_chunks_make_up_for_tiny_ones() -> None:
    app = Recorder()
    protocol, count = build_protocol(app), h11_bounds.MAX_TINY_CHUNKS
    long = b"%x\r\n%b\r\n" % (count * 17, b"b" * count * 17)
    protocol.data_received(CHUNKED + long + split_into_chunks(b"a" * (count + 1)))
    await wait_until(lambda: len(app.body) == count * 18 + 1)


@pytest.mark.parametrize(
    "head",
    [
        CHUNKED.replace(b"Host", b"Content-Length: 5\r\nHost"),
        CHUNKED.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"),
    ],
    ids=["two lengths", "HTTP/1.0"],
)
async def test_ambiguous_length_of_a_body_is_refused_and_the_connection_closed(head: bytes) -> None:
    protocol = build_protocol(app := Recorder())
    protocol.transport.close.side_effect = lambda: protocol.transport.is_closing.configure_mock(return_value=True)
    protocol.data_received(head + b"0\r\n\r\n" + GET + b"\r\n")
    received = b"".join(call.args[0] for call in protocol.transport.write.call_args_list)
    assert received.startswith(b"HTTP/1.1 400")
    assert h11_bounds.TWO_LENGTHS.encode() in received
    assert received.count(b"HTTP/1.1") == 1
    assert app.count == 0
    protocol.transport.close.assert_called_once()
    protocol.connection_lost(None)


def test_connection_counts_its_events() -> None:
    connection = h11_bounds.BoundedConnection()
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.next_event() is h11.NEED_DATA
    connection.events_left = 2
    assert isinstance(connection.next_event(), h11.Request)
