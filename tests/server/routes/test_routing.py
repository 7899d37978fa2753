"""Paths and methods without a route, and HEAD."""

from __future__ import annotations

import anyio
import pytest

from tests.server.conftest import FakeServer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
    ],
)
async def test_unknown_route_has_error_body(server: FakeServer, method: str, path: str, status: int) -> None:
    response = await server.http.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == ("method_not_supported" if status == 405 else None)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/v1/models"])
async def test_head_has_headers_of_get(server: FakeServer, path: str) -> None:
    assert (await server.http.head(path)).headers == (await server.http.get(path)).headers


async def test_head_of_a_file_does_not_read_it(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await server.http.get("/samples/kitchen.png")
    monkeypatch.setattr(anyio, "open_file", None)
    response = await server.http.head("/samples/kitchen.png")
    assert response.headers == expected.headers
    assert int(response.headers["content-length"]) == len(expected.content)
    assert (await server.http.get("/samples/kitchen.png")).status_code == 500
