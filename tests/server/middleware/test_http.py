"""Request ids and security headers."""

import pytest
from structlog.typing import EventDict

from tests.server.conftest import FakeServer


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models"])
async def test_security_headers_are_set(server: FakeServer, path: str) -> None:
    headers = (await server.http.get(path)).headers
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


async def test_request_id_is_echoed_and_logged(server: FakeServer, log_entries: list[EventDict]) -> None:
    for path in ("/health", "/nothing"):
        response = await server.http.get(path, headers={"x-request-id": "mine_1-A"})
        assert response.headers["x-request-id"] == "mine_1-A"
    assert [entry["request_id"] for entry in log_entries if entry["event"] == "response_sent"] == ["mine_1-A"] * 2
    for bad in ("", "x" * 65, "a b", "a;b", "ü"):
        response = await server.http.get("/health", headers={b"x-request-id": bad.encode()})
        assert response.headers["x-request-id"] != bad
        assert len(response.headers["x-request-id"]) == 32
