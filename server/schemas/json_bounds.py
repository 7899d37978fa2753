"""The bounds on the shape of one JSON body: depth, members and values. They are checked before any parser sees it.

A parser builds objects for every value, and the validation of a list builds an error for every element. Both hold the
interpreter and take many times the memory of the bytes. The bounds keep that work small.

Only data URLs of images may be large. The parser gets the document without them, and they are decoded in slices. Their
places in the requests are fixed, because a text of another field is the work of the tokenizer.
"""

from __future__ import annotations

import re

from decoding.errors import BadRequest

MAX_DEPTH = 100  # objects and lists inside one another
MAX_MEMBERS = 1024  # of one object
MAX_ELEMENTS = 16_384  # of one list
MAX_VALUES = 50_000  # of the whole document
MAX_KEY_BYTES = 1024
MAX_TEXT_BYTES = 4_000_000  # of the whole document without its long data URLs; a parser takes about 25 ms for them
MIN_DATA_URL_BYTES = 65_536  # a shorter data URL counts as text
MAX_TOKENS = 2000  # scanned in one call, which takes about a millisecond
SLICE_BYTES = 65_536  # scanned in one call
STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the closing quote; possessive, so it stays linear
NEXT_TOKEN = re.compile(rb'["\[\]{},]')
INVALID_JSON = "The body is not valid JSON in UTF-8."
DATA_URL_START = b"data:"
IMAGE_PATHS = ((b"messages", b"content", b"image_url", b"url"), (b"input", b"content", b"image_url"))  # without lists
BATCH_LINE_PATH = (b"body",)  # of a request in a line of a batch
QUOTE, COMMA, OPEN_OBJECT, OPEN_LIST, BACKSLASH = b'",{[\\'


class JsonBoundsScanner:
    """Checks the bounds of one document. Call `scan` with each piece of it until the piece is read.

    The scanner counts brackets, commas and strings. It skips the inside of strings with functions written in C. It does
    not validate: a document within the bounds may still be no JSON.
    """

    def __init__(self) -> None:
        self.data_urls: list[tuple[int, int]] = []  # start and end of the long ones in the document, without quotes
        self._size = 0  # bytes that have been scanned
        self._data_url_bytes = 0
        self._values = 1
        self._counts: list[int] = []  # commas in each open object or list, outermost first
        self._is_object: list[bool] = []
        self._strings = 0  # since the last opening bracket or comma; a key and a value are two
        self._in_string = False
        self._ends_in_escape = False  # the last piece ended between a backslash and its character
        self._is_key = False  # whether the open string is a key
        self._key = b""  # of the value that is open or follows; empty in a list
        self._path: list[bytes] = []  # the key of each open object or list, outermost first
        self._string_start = 0  # in the document
        self._head: bytes | None = None  # first bytes of the open string; None if it is no data URL of an image

    def scan(self, data: bytes, position: int) -> int:
        """Scan at most `SLICE_BYTES` and `MAX_TOKENS`, or raise `BadRequest` when a bound is exceeded.

        Args:
            data: A piece of the document, of any size.
            position: Where the scan of this piece goes on.

        Returns:
            The next position, which is the end of the piece if all of it has been read.
        """
        offset = self._size - position
        end = min(len(data), position + SLICE_BYTES)
        position = self._scan_slice(data, position, end, offset)
        self._size = offset + position
        self._check_text_bytes()
        return position

    def _scan_slice(self, data: bytes, position: int, end: int, offset: int) -> int:
        """Scan to `end` or for `MAX_TOKENS`, and return the next position. `offset` is the start of `data`."""
        if self._in_string:
            position = self._skip_string(data, position, end, offset)
        for _ in range(MAX_TOKENS):
            if self._in_string or not (match := NEXT_TOKEN.search(data, position, end)):
                return end
            position = match.end()
            token = data[position - 1]
            if token == QUOTE:
                self._open_string(offset + position)
                position = self._skip_string(data, position, end, offset)
            elif token == COMMA:
                self._count_comma()
            elif token in (OPEN_OBJECT, OPEN_LIST):
                self._open_container(token == OPEN_OBJECT)
            else:
                self._close_container()
        return position

    def _check_text_bytes(self) -> None:
        open_bytes = self._size - self._string_start if self._in_string and self._head is not None else 0
        if self._size - self._data_url_bytes - open_bytes > MAX_TEXT_BYTES:
            bound = f"without the data URLs of images, it has more than {MAX_TEXT_BYTES // 1_000_000} MB"
            raise _build_too_complex(bound)

    def _open_string(self, start: int) -> None:
        self._strings += 1
        if self._strings > 2:  # no JSON has three strings without a comma or a bracket between them
            raise BadRequest(INVALID_JSON)
        self._is_key = self._strings == 1 and bool(self._is_object) and self._is_object[-1]
        if self._is_key:
            self._key = b""
        self._in_string, self._string_start = True, start
        self._head = b"" if not self._is_key and self._is_image_place() else None

    def _is_image_place(self) -> bool:
        """Return whether the string that follows is the URL of an image, if the request is valid."""
        if not self._key:
            return False
        path = tuple(key for key in (*self._path, self._key) if key)
        return path in IMAGE_PATHS or (path[:1] == BATCH_LINE_PATH and path[1:] in IMAGE_PATHS)

    def _skip_string(self, data: bytes, position: int, end: int, offset: int) -> int:
        """Return the position after the closing quote, or `end`."""
        start = position
        if self._ends_in_escape and position < end:
            position, self._ends_in_escape = position + 1, False
        quote = data.find(b'"', position, end)
        if (escape := data.find(b"\\", position, end if quote < 0 else quote)) >= 0:
            match = STRING_REST.match(data, escape, end)
            rest = match.end() if match else escape
            self._ends_in_escape = rest == end - 1 and data[rest] == BACKSLASH
            quote = rest if rest < end and data[rest] == QUOTE else -1
        stop = end if quote < 0 else quote
        if self._is_key:
            self._key += data[start : min(stop, start + MAX_KEY_BYTES + 1)]
            if len(self._key) > MAX_KEY_BYTES:
                raise _build_too_complex(f"a key has more than {MAX_KEY_BYTES} bytes")
        self._in_string = quote < 0
        is_long = offset + stop - self._string_start >= MIN_DATA_URL_BYTES
        if self._head is not None and (self._in_string or is_long):
            self._check_data_url(data[start:stop])
            if self._head is not None and not self._in_string:
                self.data_urls.append((self._string_start, offset + stop))
                self._data_url_bytes += offset + stop - self._string_start
        if not self._in_string:
            self._head = None
        return end if quote < 0 else quote + 1

    def _check_data_url(self, part: bytes) -> None:
        """Set `_head` to None if the open string is no data URL."""
        head = self._head or b""
        head += part[: len(DATA_URL_START) - len(head)]
        self._head = head if DATA_URL_START.startswith(head.lower()) and part.isascii() else None

    def _count_comma(self) -> None:
        if not self._counts:
            raise BadRequest(INVALID_JSON)
        self._strings = 0
        self._counts[-1] += 1
        if self._is_object[-1]:
            if self._counts[-1] >= MAX_MEMBERS:
                raise _build_too_complex(f"an object has more than {MAX_MEMBERS} members")
        elif self._counts[-1] >= MAX_ELEMENTS:
            raise _build_too_complex(f"a list has more than {MAX_ELEMENTS} elements")
        self._count_value()

    def _open_container(self, is_object: bool) -> None:
        self._strings = 0
        self._counts.append(0)
        self._is_object.append(is_object)
        self._path.append(self._key)
        self._key = b""
        if len(self._counts) > MAX_DEPTH:
            raise _build_too_complex(f"objects and lists are nested more than {MAX_DEPTH} deep")
        self._count_value()

    def _close_container(self) -> None:
        if not self._counts:
            raise BadRequest(INVALID_JSON)
        self._counts.pop()
        self._is_object.pop()
        self._key = self._path.pop()

    def _count_value(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _build_too_complex(f"the document has more than {MAX_VALUES} values")


def check_json_bounds(document: bytes) -> list[tuple[int, int]]:
    """Check the bounds of a complete document, or raise `BadRequest`. Slow: call it in a thread.

    Returns:
        Start and end of each long data URL in the document.
    """
    scanner, position = JsonBoundsScanner(), 0
    while position < len(document):
        position = scanner.scan(document, position)
    return scanner.data_urls


def _build_too_complex(bound: str) -> BadRequest:
    return BadRequest(f"The body is too complex: {bound}.", code="body_too_complex")
