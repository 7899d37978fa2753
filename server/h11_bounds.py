"""h11's HTTP connection with bounds on headers, trailers, tiny chunks, and the events that it returns at once."""

from __future__ import annotations

import re

import h11

MAX_HEAD_BYTES = 16_384  # of the request line and the headers together, and of the trailers of a body
MAX_HEADERS = 100  # lines; h11 takes about 2 microseconds for each
TINY_CHUNK_BYTES = 16
MAX_TINY_CHUNKS = 2000  # chunks of a body that are shorter on average
HEAD_TOO_LARGE = f"The headers have more than {MAX_HEAD_BYTES // 1024} kB or {MAX_HEADERS} lines."
TWO_LENGTHS = "The request has both Transfer-Encoding and Content-Length, or has Transfer-Encoding with HTTP/1.0."
END_OF_LAST_HEADER = re.compile(rb"\n(?=\r?\n)")


class BoundedConnection(h11.Connection):
    """h11's server connection with bounds on headers, chunks and events.

    After `events_left` events it returns NEED_DATA, although it may have more.

    h11 compares headers and trailers with its bound only while their end is missing. So it gets the data in pieces that
    are no larger than the bound.

    A body of many tiny chunks is a protocol error: it takes a thousand times the work of its bytes. So is a body whose
    length a proxy can read in another way than h11. The rest of it could be the request of another client.

    Attributes:
        events_left: Events that it returns next.
        method: Method of the last request.
        refusal: Reason of its `RemoteProtocolError`, for the client; None for an error of h11.
    """

    events_left = 0
    method = b""
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
            RemoteProtocolError: The headers are too large, the length of the body is ambiguous, it has too many tiny
                chunks, or h11 refuses the data.
        """
        if self.events_left == 0:
            return h11.NEED_DATA
        self.events_left -= 1
        event = self._parse_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            self.method = event.method
            self._check_body_length(event)
            return to_origin_form(event)
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > MAX_TINY_CHUNKS and self._chunk_bytes < self._chunks * TINY_CHUNK_BYTES:
                self.refusal = (
                    f"The body has more than {MAX_TINY_CHUNKS} chunks of fewer than {TINY_CHUNK_BYTES} bytes."
                )
                raise h11.RemoteProtocolError(self.refusal)
        return event

    def _check_body_length(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            self.refusal = TWO_LENGTHS
            raise h11.RemoteProtocolError(TWO_LENGTHS)

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
            found = END_OF_LAST_HEADER.search(head)
            if found is None or head.count(b"\n", 0, found.end()) > MAX_HEADERS + 1:
                raise h11.RemoteProtocolError(HEAD_TOO_LARGE, error_status_hint=431)


def to_origin_form(request: h11.Request) -> h11.Request:
    """Convert a request whose target is a whole URL to one whose target is a path.

    Servers accept such targets, and the host of the URL replaces that of the Host header.

    Args:
        request: The request.

    Returns:
        The request, or the same one if its target is no URL.

    Source:
        RFC 9112, section 3.2.2.
    """
    match = re.fullmatch(rb"https?://([^/?]*)(.*)", request.target, re.IGNORECASE)
    if match is None:
        return request
    host, path = match.groups()
    headers = [(b"host", host), *((name, value) for name, value in request.headers if name != b"host")]
    target = path if path.startswith(b"/") else b"/" + path
    return h11.Request(method=request.method, headers=headers, target=target, http_version=request.http_version)
