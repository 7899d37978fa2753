"""Requests of pages of other origins."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from structlog.typing import EventDict

from server.middleware.cors import METHODS, create_cors_middleware
from server.settings import Settings
from tests.server.batch.test_refusals import UPLOAD
from tests.server.conftest import FakeServer, StartServer, chat_request

PAGE = "https://app.example"
KEY = {"authorization": "Bearer secret"}


def preflight(origin: str = PAGE, method: str = "POST", **headers: str) -> dict[str, Any]:
    names = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-os,x-session-id",
    }
    return {"method": "OPTIONS", "url": "/v1/chat/completions", "headers": names | headers}


async def test_no_origin_is_allowed_by_default(server: FakeServer) -> None:
    response = await server.http.request(**preflight())
    assert response.status_code == 405
    answer = await server.http.post("/v1/chat/completions", json=chat_request(), headers={"origin": PAGE})
    assert not [name for name in (*response.headers, *answer.headers) if name.startswith("access-control")]


@pytest.mark.parametrize("origins", [PAGE, f"http://localhost:3000, {PAGE.upper()}", "*"])
async def test_page_sends_a_key_after_a_preflight_without_it(start_server: StartServer, origins: str) -> None:
    server = await start_server(api_keys="secret", rate_limit="1/minute", cors_origins=origins)
    for _ in range(2):  # the rate limit does not count them
        response = await server.http.request(**preflight())
        assert response.status_code == 200
    allowed = {name.strip() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-session-id"} <= allowed
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["x-request-id"] == "test"
    answer = await server.http.post("/v1/chat/completions", json=chat_request(), headers=KEY | {"origin": PAGE})
    assert answer.status_code == 200
    for each in (response, answer):
        assert each.headers["access-control-allow-origin"] == ("*" if origins == "*" else PAGE)
        assert "Origin" in each.headers["vary"]
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (KEY | {"host": "b.example"}, 403), (KEY, 400)])
async def test_page_can_read_errors_of_all_checks(
    start_server: StartServer, headers: dict[str, str], status: int
) -> None:
    server = await start_server(api_keys="secret", allowed_hosts="a.example", cors_origins=PAGE)
    body = chat_request(temperature=9)
    response = await server.http.post("/v1/chat/completions", json=body, headers={"origin": PAGE} | headers)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("fields", [{"origin": "https://evil.example"}, {"origin": "null"}, {"method": "PATCH"}])
async def test_other_preflight_is_refused(
    start_server: StartServer, log_entries: list[EventDict], fields: dict[str, str]
) -> None:
    server = await start_server(cors_origins=PAGE)
    response = await server.http.request(**preflight(**fields))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in response.headers["vary"]
    assert [entry["code"] for entry in log_entries if entry["event"] == "request_refused"] == ["forbidden"]
    answer = await server.http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


async def test_page_of_a_listed_origin_can_upload_to_a_server_without_keys(start_server: StartServer) -> None:
    server = await start_server(cors_origins=PAGE)
    for origin, status in ((PAGE, 200), ("https://evil.example", 403)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert (await server.http.post("/v1/files", headers=headers, **UPLOAD)).status_code == status


def test_preflights_allow_the_methods_of_all_routes(server: FakeServer) -> None:
    paths = server.app.openapi()["paths"]
    assert {method.upper() for operations in paths.values() for method in operations} <= set(METHODS)


@pytest.mark.parametrize(
    ("origins", "problem"),
    [
        ("app.example", "form SCHEME://HOST"),
        ("https://app.example/", "form SCHEME://HOST"),
        ("https://*.example", "form SCHEME://HOST"),
        ("https://user@app.example", "form SCHEME://HOST"),
        ("null", "form SCHEME://HOST"),
        ("https://app.example:443", "leave it out"),
        (f"{PAGE},http://app.example:80", "leave it out"),
        ("*", "needs api_keys"),
    ],
)
def test_origin_that_no_browser_sends_is_rejected_at_start(origins: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Settings(cors_origins=origins)
    Settings(cors_origins="https://app.example:8443,capacitor://localhost,http://[::1]:3000")


async def test_middleware_works_without_a_server_of_ours() -> None:
    """As in the proxy of Ray Serve."""
    app = Starlette(middleware=create_cors_middleware(Settings(cors_origins=PAGE)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.request(**preflight())).headers["access-control-allow-origin"] == PAGE
        assert (await client.request(**preflight("https://evil.example"))).status_code == 403
