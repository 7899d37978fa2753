"""Headers, charset and fields of an uploaded form."""

from __future__ import annotations

import asyncio
import threading

import pytest
from python_multipart.multipart import MultipartParser

from server.batch import uploads
from server.middleware.auth import hash_key
from tests.server.conftest import FakeServer, StartServer, wait_until
from tests.server.interpreter_holds import measure_longest_hold

PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize(
    "header",
    [b"a: " + b"b" * 5_000_000, b"a" * 5_000_000 + b": b", b"a: b\r\n" * 500_000],
    ids=["long value", "long name", "many"],
)
async def test_large_headers_of_a_part_are_refused(server: FakeServer, header: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with measure_longest_hold() as hold:
        response = await server.http.post("/v1/files", content=PART + header + b"\r\n\r\n", headers=headers)
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        "The body must be a form with one file.",
    )
    assert hold.seconds < 0.25


PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "utf-7", "utf-16", "latin-1", "unknown", ""])
async def test_charset_other_than_utf8_is_refused(server: FakeServer, charset: str) -> None:
    field = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"b" * 60_000 + b"-" + b"a" * 60_000
    file = b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="xn--a+2AA-"\r\n\r\na\r\n--x--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    with measure_longest_hold() as hold:
        response = await server.http.post("/v1/files", content=field + file, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "The charset of Content-Type must be utf-8."
    assert hold.seconds < 0.25


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "us-ascii"])
async def test_form_is_decoded_as_utf8(server: FakeServer, charset: str) -> None:
    file = '--x\r\nContent-Disposition: form-data; name="file"; filename="é"\r\n\r\na\r\n--x--\r\n'.encode()
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    response = await server.http.post("/v1/files", content=PURPOSE + file, headers=headers)
    assert (response.status_code, response.json()["filename"]) == (200, "é")


async def test_long_field_is_refused(server: FakeServer) -> None:
    for size, message in (
        (uploads.MAX_FIELD_BYTES, "The purpose must be 'batch'."),
        (uploads.MAX_FIELD_BYTES + 1, "The body must be a form with one file."),
    ):
        response = await server.http.post("/v1/files", files={"file": b"a"}, data={"purpose": "x" * size})
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)


async def test_content_of_partial_boundaries_is_parsed_in_a_thread(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser takes several hundred times as long for it as for other content."""
    content = b"\r\n--x\r" * 30_000
    threads = set[int]()
    parse = MultipartParser.write

    def record_thread(parser: MultipartParser, data: bytes) -> int:
        threads.add(threading.get_ident())
        return parse(parser, data)

    monkeypatch.setattr(MultipartParser, "write", record_thread)
    form = PURPOSE + PART + b"\r\n" + content + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = await server.http.post("/v1/files", content=form, headers=headers)
    assert response.status_code == 200
    assert threading.get_ident() not in threads
    stored = await server.http.get(f"/v1/files/{response.json()['id']}/content")
    assert stored.content == content


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary=" + "b" * 257])
async def test_form_without_a_usable_boundary_is_refused(server: FakeServer, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    response = await server.http.post("/v1/files", content=PURPOSE, headers=headers)
    message = "The Content-Type of a form must have a boundary of 1 to 256 characters."
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


async def test_longest_boundary_is_accepted(server: FakeServer) -> None:
    boundary = b"b" * uploads.MAX_BOUNDARY
    form = (PURPOSE + PART + b"\r\na\r\n--x--\r\n").replace(b"--x", b"--" + boundary)
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    assert (await server.http.post("/v1/files", content=form, headers=headers)).status_code == 200


async def test_other_content_type_is_refused(server: FakeServer) -> None:
    headers = {"content-type": "multipart/form-dataX; boundary=x"}
    assert (await server.http.post("/v1/files", content=PURPOSE, headers=headers)).status_code == 415


async def test_keys_take_turns_to_have_a_chunk_parsed(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty uploads of a key do not go before the only one of another key."""
    server = await start_server(api_keys="many,one")
    order: list[bytes] = []
    is_open = threading.Event()
    parse = MultipartParser.write

    def record(parser: MultipartParser, data: bytes) -> int:
        is_open.wait(10)
        order.append(data[-20:])
        return parse(parser, data)

    monkeypatch.setattr(MultipartParser, "write", record)

    async def upload(key: str, content: bytes) -> int:
        form = PURPOSE + PART + b"\r\n" + content + b"\r\n--x--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=x", "authorization": f"Bearer {key}"}
        return (await server.http.post("/v1/files", content=form, headers=headers)).status_code

    async with asyncio.TaskGroup() as group:
        many = [group.create_task(upload("many", b"many")) for _ in range(20)]
        await wait_until(lambda: server.app.state.service.form_queue.count_waiting(hash_key(b"many").hex()) == 19)
        one = group.create_task(upload("one", b"one"))
        await wait_until(lambda: server.app.state.service.form_queue.count_waiting(hash_key(b"one").hex()) == 1)
        is_open.set()
    assert {task.result() for task in (*many, one)} == {200}
    place = next(number for number, data in enumerate(order) if b"one" in data)
    assert place <= 2
