"""Bounds on the shape of JSON, before it is parsed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.errors import BadRequest
from server.schemas.base import parse_json
from server.schemas.json_bounds import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_KEY_BYTES,
    MAX_MEMBERS,
    MAX_TEXT_BYTES,
    MAX_VALUES,
    MIN_DATA_URL_BYTES,
    JsonBoundsScanner,
    check_json_bounds,
)
from tests.server.conftest import FakeServer, chat_request

JSON = {"content-type": "application/json"}
MEGABYTE = 1_000_000
TEXT_PART = b'{"type": "text", "text": "a"}'
ROUTES = ["v1/chat/completions", "v1/completions", "v1/responses", "tokenize", "v1/batches"]
LARGE_BODIES = {
    "list of numbers": (b'{"messages": [{"role": "user", "content": [' + b"0," * MEGABYTE + b"0]}]}", "list"),
    "list of parts": (b'{"messages": [{"content": [' + b",".join([TEXT_PART] * 60_000) + b"]}]}", "list"),
    "empty lists": (b'{"input": [' + b"[]," * MEGABYTE + b"[]]}", "list"),
    "unknown keys": (b"{" + b",".join(b'"%d": 0' % key for key in range(100_000)) + b"}", "object"),
    "metadata": (b'{"metadata": {' + b",".join(b'"%d": "a"' % key for key in range(100_000)) + b"}}", "object"),
    "strategy parameters": (b'{"decoding": {"vcd": {"alpha": [' + b"1," * MEGABYTE + b"1]}}}", "list"),
    "nested lists": (b'{"prompt": ' + b"[" * MEGABYTE, "nested"),
    "nested objects": (b'{"a":' * 100_000, "nested"),
    "many short lists": (b'{"a": [' + b",".join([b"[0,0,0,0,0,0,0,0]"] * 20_000) + b"]}", "values"),
    "long key": (b'{"' + b"x" * MEGABYTE + b'": 1}', "key"),
}
IMAGE = b'{"messages": [{"content": [{"image_url": {"url": %b}}]}]}'
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "[{,", "é\\"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", LARGE_BODIES)
async def test_large_structure_is_refused_by_its_bound(server: FakeServer, route: str, name: str) -> None:
    body, bound = LARGE_BODIES[name]
    started_at = time.thread_time()
    response = await server.http.post(f"/{route}", content=body, headers=JSON)
    seconds = time.thread_time() - started_at
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "body_too_complex")
    assert bound in error["message"]
    assert seconds < 0.5
    assert server.app.state.service.body_budget.used_bytes == 0


def nest(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("largest", "too_large"),
    [
        (nest(MAX_DEPTH), nest(MAX_DEPTH + 1)),
        ([0] * MAX_ELEMENTS, [0] * (MAX_ELEMENTS + 1)),
        (dict.fromkeys(map(str, range(MAX_MEMBERS))), dict.fromkeys(map(str, range(MAX_MEMBERS + 1)))),
        ({"x" * MAX_KEY_BYTES: 1}, {"x" * (MAX_KEY_BYTES + 1): 1}),
        ([[0] * 9] * (MAX_VALUES // 10 - 1), [[0] * 9] * (MAX_VALUES // 10)),
    ],
    ids=["depth", "elements", "members", "key", "values"],
)
def test_each_bound_is_exact(largest: Any, too_large: Any) -> None:
    check_json_bounds(json.dumps(largest).encode())
    with pytest.raises(BadRequest) as refused:
        check_json_bounds(json.dumps(too_large).encode())
    assert refused.value.code == "body_too_complex"


@settings(max_examples=300)
@given(VALUES, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_scan_does_not_depend_on_the_pieces(value: Any, sizes: list[int], escape: bool) -> None:
    document = json.dumps(value, ensure_ascii=escape).encode(errors="surrogatepass")
    whole, pieces = JsonBoundsScanner(), JsonBoundsScanner()
    assert whole.scan(document, 0) == len(document)
    start = number = 0
    while start < len(document):
        end = start + sizes[number % len(sizes)]
        pieces.scan(document[start:end], 0)
        start, number = end, number + 1
    assert vars(whole) == vars(pieces)
    assert (whole._counts, whole._in_string) == ([], False)


@pytest.mark.parametrize("start", [b"", b"data:"])
@pytest.mark.parametrize("text", [b"A", b'\\"', b"\\u0041", b"\\\\"], ids=repr)
def test_long_string_is_scanned_fast(text: bytes, start: bytes) -> None:
    size = 8 * MEGABYTE if start else MAX_TEXT_BYTES - 100
    document = IMAGE % (b'"' + start + text * (size // len(text)) + b'"')
    started_at = time.thread_time()
    check_json_bounds(document)
    assert time.thread_time() - started_at < 0.5


async def test_half_a_million_text_parts_are_refused(server: FakeServer) -> None:
    content = [{"type": "text", "text": "a"}] * 2049
    response = await server.chat(messages=[{"role": "user", "content": content}])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0].content")
    body = json.dumps(chat_request(messages=[{"role": "user", "content": content * 250}])).encode()
    response = await server.http.post("/v1/chat/completions", content=body, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "body_too_complex")


async def test_validation_stops_at_the_first_bad_part(server: FakeServer) -> None:
    content = [{"type": "text"}] * 2000
    response = await server.chat(messages=[{"role": "user", "content": content}] * 10)
    assert response.json()["error"]["param"] == "messages[0].content[0].text"


@pytest.mark.parametrize(
    "value",
    [
        b'"%b"' % (b"a" * MAX_TEXT_BYTES),
        b" " * MAX_TEXT_BYTES + b"1",
        b"0" * MAX_TEXT_BYTES,
        b'"data:%b"' % ("é" * (MAX_TEXT_BYTES // 2)).encode(),
    ],
    ids=["string", "spaces", "digits", "data URL of wide characters"],
)
def test_text_of_a_document_is_bounded(value: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        check_json_bounds(IMAGE % value)
    assert refused.value.code == "body_too_complex"


@pytest.mark.parametrize(
    "document",
    [
        b'{"prompt": %b}',
        b'{"input": %b}',
        b'{"instructions": %b}',
        b'{"url": %b}',
        b'{"metadata": {"image_url": %b}}',
        b'{"messages": [{"role": "user", "content": %b}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": %b}]}]}',
        b'{"messages": [{"content": [{"image_url": {"url": [%b]}}]}]}',
        b'{"messages": [{"content": [{"image_url": {"url": "a", "detail": %b}}]}]}',
        b'{"response_format": {"json_schema": {"schema": {"image_url": {"url": %b}}}}}',
        b'{"decoding": {"vcd": {"url": %b}}}',
        b'{"body": {"prompt": %b}}',
        b'{"body": {"body": {"input": [{"content": [{"image_url": %b}]}]}}}',
    ],
    ids=lambda document: document.decode(),
)
def test_data_url_elsewhere_than_in_an_image_counts_as_text(document: bytes) -> None:
    value = b'"data:image/png;base64,%b"' % (b"A" * MAX_TEXT_BYTES)
    with pytest.raises(BadRequest, match="without the data URLs of images"):
        check_json_bounds(document % value)


@pytest.mark.parametrize(
    "document",
    [
        IMAGE,
        b'{"input": [{"role": "user", "content": [{"type": "input_image", "detail": "low", "image_url": %b}]}]}',
        b'{"custom_id": "a", "body": {"model": "a", "messages": [{"content": [{"image_url": {"url": %b}}]}]}}',
    ],
    ids=lambda document: document.decode(),
)
def test_data_url_of_an_image_may_be_long(document: bytes) -> None:
    value = b'"data:image\\/png;base64,%b"' % (b"A" * MAX_TEXT_BYTES)  # some clients escape slashes
    check_json_bounds(document % value)


@pytest.mark.parametrize("unit", ["A", "AAA\\/", "\\u002B", "A\\ud83d\\ude42", '\\"', "\\\\"], ids=repr)
@pytest.mark.parametrize("shift", range(3))
def test_long_data_urls_are_parsed_as_other_strings_are(unit: str, shift: int) -> None:
    url = '"data:' + "B" * shift + unit * (MEGABYTE // len(unit)) + '"'
    image = '{"image_url": {"url": %s, "detail": "data:é"}}'
    parts = ", ".join(image % value for value in (url, '"data:short"', url))
    document = f'{{"messages": [{{"content": [{parts}]}}], "input": "data:short"}}'.encode()
    scanner = JsonBoundsScanner()
    for start in range(0, len(document), 50_000):
        piece, position = document[start : start + 50_000], 0
        while position < len(piece):
            position = scanner.scan(piece, position)
    assert len(scanner.data_urls) == 2
    assert scanner.data_urls == check_json_bounds(document)
    assert parse_json(document, scanner.data_urls) == json.loads(document)


@pytest.mark.parametrize("unit", ["\\x", "\\ud83d", "\x01"], ids=repr)
def test_invalid_escape_in_a_data_url_is_refused(unit: str) -> None:
    document = IMAGE % ('"data:' + unit * (2 * MIN_DATA_URL_BYTES) + '"').encode()
    data_urls = check_json_bounds(document)
    assert len(data_urls) == 1
    with pytest.raises(BadRequest, match="not valid JSON"):
        parse_json(document, data_urls)
