"""uvicorn's HTTP protocol with deadlines for clients, and a queue for connections with many events."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.h11_bounds import BoundedConnection

LINGER_SECONDS = 5.0  # after a response, for the rest of a body that the application has not read
WRITE_TIMEOUT = 60.0  # seconds in which a client must take `MIN_TAKEN_BYTES` of the write buffer, or all of it
MIN_TAKEN_BYTES = 65_536
FIRST_EVENTS = 20  # h11 events handled at once when data arrives, about 0.2 ms; a usual request has three
QUEUED_EVENTS = 50  # h11 events of one waiting connection that are handled in one iteration of the event loop
TIMEOUT_BODY = b"The headers did not arrive in time."


class GatedFlowControl(FlowControl):
    """Reads nothing while the gate is closed, even if uvicorn resumes it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_closed = False
        self._is_pause_requested = False

    def pause_reading(self) -> None:
        self._is_pause_requested = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._is_pause_requested = False
        if not self._is_closed:
            super().resume_reading()

    def close_gate(self) -> None:
        self._is_closed = True
        super().pause_reading()

    def open_gate(self) -> None:
        self._is_closed = False
        if not self._is_pause_requested:
            super().resume_reading()

    def enforce_pause(self) -> None:
        """Pause the transport again if uvicorn has resumed it without this object."""
        if self.read_paused and self._transport.is_reading():
            self._transport.pause_reading()


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
        self._application, self.app = self.app, self._run_application

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
        except BaseException:
            protocol.transport.abort()  # in `data_received` the event loop does this
            raise
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
        self.flow.enforce_pause()
        return self.conn.events_left == 0 and not self.transport.is_closing()

    async def _run_application(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._application(scope, receive, send)
        finally:
            self.loop.call_soon(self._watch_writing)  # uvicorn closes the connection now if the response is incomplete

    def send_400_response(self, msg: str) -> None:
        """Refuse the bytes of the client, unless it has a response already, and close the connection.

        A request that runs ends as if its client had disconnected, because h11 sends nothing more for it.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write_refusal(400, b"Bad Request", (self.conn.refusal or msg).encode())
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._close()

    def _write_refusal(self, status: int, reason: bytes, body: bytes) -> None:
        """Write a response without the application. h11 accepts no body for a HEAD request."""
        headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        events: list[h11.Event] = [h11.Response(status_code=status, headers=headers, reason=reason)]
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.conn.method == b"HEAD"
        if not is_head:
            events.append(h11.Data(data=body))
        for event in (*events, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _close(self) -> None:
        """Close the connection when its client has taken the bytes that wait, or when it takes too few of them."""
        self.transport.close()
        self._watch_writing()

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
        # The application adds nothing.
        is_stable = self.flow.write_paused or is_complete or self.transport.is_closing()
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
        if self.transport.is_closing():  # A refused request has no cycle.
            self._set_timer(None)
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self._set_timer("body")
        elif self.conn.has_partial_request:
            self._set_timer("headers")
        elif self.conn.their_state is self.conn.our_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._set_timer("idle")  # uvicorn starts its timer after a response only, and ends it with the next bytes
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
            seconds = {"headers": self.header_timeout, "idle": self.timeout_keep_alive, "body": LINGER_SECONDS}
            self._timer = self.loop.call_later(seconds[state], self._close_late)

    def _close_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.has_partial_request:
            self._write_refusal(408, b"Request Timeout", TIMEOUT_BODY)
        self._close()


def create_protocol(header_timeout: float) -> type[TimedH11Protocol]:
    """Create the protocol class for `uvicorn.Config(http=...)`, which calls it without settings.

    Args:
        header_timeout: Seconds.

    Returns:
        The class, for one event loop.
    """
    fields = {"header_timeout": header_timeout, "queue": deque()}
    return type("ConfiguredH11Protocol", (TimedH11Protocol,), fields)
