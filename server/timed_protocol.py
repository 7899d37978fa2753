"""uvicorn's HTTP protocol with deadlines for clients and bounds on the work of each callback."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

LINGER_SECONDS = 5.0  # after a response, for the rest of a body that the application has not read
WRITE_TIMEOUT = 60.0  # seconds in which a client must take `MIN_TAKEN_BYTES` of what waits for it, or all of it
MIN_TAKEN_BYTES = 65_536
FIRST_EVENTS = 20  # h11 events handled at once when data arrives, about 0.2 ms; a usual request has three
QUEUED_EVENTS = 50  # h11 events of one waiting connection that are handled in one iteration of the event loop
MAX_HEAD_BYTES = 16_384  # of the request line and the headers together, and of the trailers of a body
MAX_HEADERS = 100  # lines; h11 takes about 2 microseconds for each
TINY_CHUNK = 16  # bytes
MAX_TINY_CHUNKS = 2000  # chunks of a body that are shorter on average
TIMEOUT_BODY = b"The headers did not arrive in time."
HEAD_TOO_LARGE = f"The headers have more than {MAX_HEAD_BYTES // 1024} kB or {MAX_HEADERS} lines."
LINE_BEFORE_BLANK_ONE = re.compile(rb"\n(?=\r?\n)")


class BoundedConnection(h11.Connection):
    """Reports that it needs data when it has returned `events_left` events, although it may have more.

    h11 compares headers and trailers with its bound only while their end is missing. So it gets the data in pieces that
    are no larger than the bound.

    A body of many tiny chunks is a protocol error: it takes a thousand times the work of its bytes.

    Attributes:
        events_left: Events that it returns next.
        refusal: Why it has raised `RemoteProtocolError`, for the client; None for an error of h11.
    """

    events_left = 0
    refusal: str | None = None
    _chunks = 0  # of the current body
    _chunk_bytes = 0

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._unparsed = bytearray()  # received, and not yet passed to h11

    @property
    def has_partial_request(self) -> bool:
        """Whether bytes of a request have arrived, but not all of its headers."""
        return self.their_state is h11.IDLE and bool(self._unparsed or self.trailing_data[0])

    def receive_data(self, data: bytes) -> None:
        """Keep data for `next_event`."""
        self._unparsed += data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event, unless `events_left` is 0.

        Raises:
            RemoteProtocolError: The headers are too large, the body has too many tiny chunks, or h11 refuses the data.
        """
        if self.events_left == 0:
            return h11.NEED_DATA
        self.events_left -= 1
        event = self._parse_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > MAX_TINY_CHUNKS and self._chunk_bytes < self._chunks * TINY_CHUNK:
                self.refusal = f"The body has more than {MAX_TINY_CHUNKS} chunks of fewer than {TINY_CHUNK} bytes."
                raise h11.RemoteProtocolError(self.refusal)
        return event

    def _parse_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while True:
                self._check_header_count()
                event = super().next_event()
                if event is not h11.NEED_DATA or not self._unparsed:
                    return event
                size = MAX_HEAD_BYTES + 1 - len(self.trailing_data[0])  # one byte beyond the bound, which h11 refuses
                super().receive_data(bytes(self._unparsed[:size]))
                del self._unparsed[:size]
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal = HEAD_TOO_LARGE
            raise

    def _check_header_count(self) -> None:
        """Refuse a request with too many headers before h11 parses them."""
        if self.their_state is not h11.IDLE:
            return
        head = self.trailing_data[0]
        if head.count(b"\n") > MAX_HEADERS + 1:  # the request line is one more; a body may follow
            last_line = LINE_BEFORE_BLANK_ONE.search(head)
            if last_line is None or head.count(b"\n", 0, last_line.end()) > MAX_HEADERS + 1:
                raise h11.RemoteProtocolError(HEAD_TOO_LARGE, error_status_hint=431)


class GatedFlowControl(FlowControl):
    """Reads nothing while the gate is closed, even if uvicorn resumes it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_closed = False
        self._wants_pause = False

    def pause_reading(self) -> None:
        self._wants_pause = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._wants_pause = False
        if not self._is_closed:
            super().resume_reading()

    def close_gate(self) -> None:
        self._is_closed = True
        super().pause_reading()

    def open_gate(self) -> None:
        self._is_closed = False
        if not self._wants_pause:
            super().resume_reading()


class TimedH11Protocol(H11Protocol):
    """Closes a connection whose client does not finish its headers, sends on after a response, or reads nothing.

    A body in chunks of one byte has an event for each of them. A connection with many events waits in a queue that all
    connections share, so that the event loop stays free for other requests.
    """

    header_timeout = 30.0  # seconds from the connection, or from the first byte of a later request
    queue: ClassVar[deque[TimedH11Protocol]] = deque()  # connections with more events, of one event loop
    conn: BoundedConnection
    flow: GatedFlowControl
    _timer: asyncio.TimerHandle | None = None
    _timer_state: str | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_queued = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = BoundedConnection()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the headers of the first request."""
        super().connection_made(transport)
        self.flow = GatedFlowControl(transport)
        self._set_timer("headers")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def handle_events(self) -> None:
        """Handle the first events, and queue the connection if it has more."""
        if not self._is_queued and self._handle_events(FIRST_EVENTS):
            self._is_queued = True
            self.flow.close_gate()
            if not self.queue:
                self.loop.call_soon(self._handle_queue)
            self.queue.append(self)

    def _handle_queue(self) -> None:
        """Handle some events of the connection that has waited longest."""
        protocol, has_more = self.queue[0], False
        try:
            has_more = not protocol.transport.is_closing() and protocol._handle_events(QUEUED_EVENTS)
        finally:
            self.queue.popleft()
            if has_more:
                self.queue.append(protocol)
            else:
                protocol._leave_queue()
            if self.queue:
                self.loop.call_soon(self._handle_queue)

    def _handle_events(self, count: int) -> bool:
        """Handle at most `count` events, and return whether there may be more."""
        self.conn.events_left = count
        super().handle_events()
        return self.conn.events_left == 0 and not self.transport.is_closing()

    def send_400_response(self, msg: str) -> None:
        """Refuse the bytes of the client, and close the connection."""
        super().send_400_response(self.conn.refusal or msg)

    def _leave_queue(self) -> None:
        self._is_queued = False
        if not self.transport.is_closing():
            self.flow.open_gate()
            self._update_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_writing()
        self._watch_writing()  # what is left of a complete response, for which no later event sets the timer

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_timer()
        self._watch_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        self._unwatch_writing()
        super().connection_lost(exc)

    def _watch_writing(self) -> None:
        """Close the connection later if its client has taken too few of the bytes that wait now."""
        size = self.transport.get_write_buffer_size()
        is_complete = self.cycle is None or self.cycle.response_complete
        is_stable = self.flow.write_paused or is_complete  # the application adds nothing
        if size and is_stable and self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT, self._check_writing, size, self.cycle)

    def _unwatch_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_writing(self, size: int, cycle: object) -> None:
        self._write_timer = None
        if cycle is self.cycle and self.transport.get_write_buffer_size() > max(size - MIN_TAKEN_BYTES, 0):
            self.transport.abort()
        else:
            self._watch_writing()

    def _update_timer(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self._set_timer("body")
        elif self.conn.has_partial_request:
            self._set_timer("headers")
        else:
            self._set_timer(None)

    def _set_timer(self, state: str | None) -> None:
        """Start the timer of a state. A timer of the same state goes on, so that single bytes do not prolong it."""
        if state == self._timer_state:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_state = state
        if state is not None:
            seconds = self.header_timeout if state == "headers" else LINGER_SECONDS
            self._timer = self.loop.call_later(seconds, self._close_late)

    def _close_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.has_partial_request:
            headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
            for event in (
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.Data(data=TIMEOUT_BODY),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def create_protocol(header_timeout: float) -> type[TimedH11Protocol]:
    """Create the protocol class for `uvicorn.Config(http=...)`, which calls it without settings.

    Args:
        header_timeout: Seconds.

    Returns:
        The class, for one event loop.
    """
    fields = {"header_timeout": header_timeout, "queue": deque()}
    return type("ConfiguredH11Protocol", (TimedH11Protocol,), fields)
