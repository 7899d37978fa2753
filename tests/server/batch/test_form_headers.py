"""Headers of the parts of an uploaded form."""

from __future__ import annotations

import pytest

from tests.server.conftest import FakeServer
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
