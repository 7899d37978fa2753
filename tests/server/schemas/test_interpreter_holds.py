"""No body holds the interpreter for long, on any route and in a line of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.batch.validation import validate_file
from tests.server.conftest import FakeServer, StartServer
from tests.server.interpreter_holds import measure_longest_hold

pytestmark = pytest.mark.flaky(reruns=2)  # a busy machine prolongs holds

SIZE = 18_000_000  # bytes; the limit of the server is 20 MB
MAX_HOLD = 0.25  # seconds; the limit is 0.05, and a busy machine lets the watching thread wait
PIECE = 1 << 18  # bytes that asyncio reads at once
CHAT = b'{"model": "tiny", "messages": [{"role": "user", "content": %b}]}'
CHAT_IMAGE = CHAT % b'[{"type": "image_url", "image_url": {"url": %b}}]'
CHAT_PARAMETERS = CHAT[:-1] % b'"a"' + b', "decoding": {"strategy": "blind", "blind": {"alpha": %b}}}'
CHAT_SCHEMA = (
    CHAT[:-1] % b'"a"' + b', "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": %b}}}'
)
CHAT_ROUTE = "/v1/chat/completions"
PLACES = {  # route, document with a place for the value
    "message": (CHAT_ROUTE, CHAT),
    "image": (CHAT_ROUTE, CHAT_IMAGE),
    "strategy parameter": (CHAT_ROUTE, CHAT_PARAMETERS),
    "schema": (CHAT_ROUTE, CHAT_SCHEMA),
    "completion": ("/v1/completions", b'{"model": "tiny", "prompt": %b}'),
    "response": ("/v1/responses", b'{"model": "tiny", "input": %b}'),
    "metadata": ("/v1/responses", b'{"model": "tiny", "input": "a", "metadata": {"a": %b}}'),
    "tokenize": ("/tokenize", b'{"model": "tiny", "prompt": %b}'),
    "batch": ("/v1/batches", b'{"input_file_id": %b, "endpoint": "/v1/completions", "completion_window": "24h"}'),
}
TEXTS = {
    "ascii": (b"a", b""),
    "escapes": (b"\\n", b""),
    "unicode escapes": (b"\\u00e9", b""),
    "wide": ("é".encode(), b""),
    "ascii and emoji": (b"a", "🙂".encode()),
}
SIZES = {"refused": SIZE, "accepted": 3_990_000}
VALUES = {
    **{
        f"{name}, {kind}": (b'"', unit, end + b'"', size)
        for name, (unit, end) in TEXTS.items()
        for kind, size in SIZES.items()
    },
    "digits": (b"", b"1", b"", SIZE),
    "fraction": (b"0.", b"1", b"", 3_990_000),
    "spaces": (b"", b" ", b"1", 3_990_000),
    "data URL": (b'"data:image/png;base64,', b"AAAA", b'"', SIZE),
    "data URL with escapes": (b'"data:image/png;base64,', b"AA\\/A", b'"', SIZE),
    "data URL of escapes": (b'"data:image/png;base64,', b"\\u002B", b'"', SIZE),
}
SLOWEST = ("unicode escapes, accepted", "wide, accepted", "data URL with escapes")
IMAGE_VALUES = (*SLOWEST, "data URL", "data URL of escapes")  # a long data URL is accepted in an image only
VALUES_BY_PLACE = {"message": tuple(VALUES), "image": IMAGE_VALUES}


def fill(document: bytes, value: tuple[bytes, bytes, bytes, int]) -> bytes:
    start, unit, end, size = value
    return document.replace(b"%b", start + unit * ((size - len(document)) // len(unit)) + end)


async def iter_pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


@pytest.fixture
async def server(start_server: StartServer) -> FakeServer:
    server = await start_server()
    await server.chat()  # imports what the first request needs
    return server


@pytest.mark.parametrize(
    ("place", "value"),
    [(place, value) for place in PLACES for value in VALUES_BY_PLACE.get(place, SLOWEST)],
)
async def test_no_body_holds_the_interpreter(server: FakeServer, place: str, value: str) -> None:
    route, document = PLACES[place]
    content = fill(document, VALUES[value])
    with measure_longest_hold() as hold:
        await server.http.post(route, content=iter_pieces(content), headers={"content-type": "application/json"})
    assert hold.seconds < MAX_HOLD


@pytest.mark.parametrize("value", VALUES)
def test_no_line_of_a_batch_holds_the_interpreter(tmp_path: Path, value: str) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}'
    line = line.replace(b"BODY", CHAT_IMAGE if value in IMAGE_VALUES else CHAT)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(fill(line, VALUES[value]))
    with measure_longest_hold() as hold:
        list(validate_file(path, CHAT_ROUTE, 20_000_000))
    assert hold.seconds < MAX_HOLD
