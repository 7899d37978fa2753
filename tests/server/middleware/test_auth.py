"""API keys."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from server.settings import Settings
from tests.server.conftest import StartServer, chat_request

KEYS = "first-key, second-key"
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/strategies"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("GET", "/health/"),
    ("OPTIONS", "/v1/models"),
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_needs_a_key(start_server: StartServer, method: str, path: str) -> None:
    server = await start_server(api_keys=KEYS)
    response = await server.http.request(method, path, headers={"host": "x/health?"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"] == "test"


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_checks_need_no_key(start_server: StartServer, path: str) -> None:
    server = await start_server(api_keys=KEYS)
    assert (await server.http.get(path)).status_code == 200


@pytest.mark.parametrize("key", ["first-key", "second-key"])
async def test_every_key_is_accepted(start_server: StartServer, key: str) -> None:
    server = await start_server(api_keys=KEYS)
    response = await server.http.post("/v1/chat/completions", json=chat_request(), headers=bearer(key))
    assert response.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer first-ke", "Bearer FIRST-KEY", "Basic first-key", "first-key", "Bearer ü"],
)
async def test_invalid_authorization_is_refused(start_server: StartServer, authorization: str) -> None:
    server = await start_server(api_keys=KEYS)
    headers = httpx.Headers([(b"authorization", authorization.encode())])
    response = await server.http.post("/v1/chat/completions", content=b"x" * 1000, headers=headers)
    assert response.status_code == 401
    assert "first-key" not in response.text


async def test_two_authorization_headers_are_refused(start_server: StartServer) -> None:
    server = await start_server(api_keys=KEYS)
    headers = [("authorization", "Bearer first-key"), ("authorization", "Bearer wrong")]
    assert (await server.http.get("/v1/models", headers=headers)).status_code == 401


def test_keys_are_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# keys of the web shop\nthird-key\n\n  fourth-key \n")
    settings = Settings.load(["--api-keys-file", str(file)])
    assert settings.load_api_keys() == ["third-key", "fourth-key"]
    assert "fourth-key" not in repr(settings)


def test_empty_key_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValidationError, match="no key"):
        Settings(api_keys_file=tmp_path / "empty")
    with pytest.raises(ValidationError, match="rate_limit"):
        Settings(rate_limit="5/minute")
    monkeypatch.setenv("ONLYSEEN_API_KEYS", " , ")
    with pytest.raises(ValidationError, match="no key"):
        Settings.load()
    monkeypatch.setenv("ONLYSEEN_API_KEYS", "secret")
    with pytest.raises(ValidationError, match="60/minute"):
        Settings.load(["--rate-limit", "often"])
    assert "secret" not in repr(Settings.load())


@pytest.mark.parametrize(
    ("settings", "key", "status"),
    [
        ({}, "", 200),
        ({"metrics_key": "operator"}, "", 401),
        ({"metrics_key": "operator"}, "operator", 200),
        ({"api_keys": "first-key"}, "first-key", 200),
        ({"api_keys": "first-key", "metrics_key": "operator"}, "first-key", 401),
        ({"api_keys": KEYS}, "first-key", 403),
        ({"api_keys": KEYS}, "operator", 401),
        ({"api_keys": KEYS, "metrics_key": "operator"}, "first-key", 401),
        ({"api_keys": KEYS, "metrics_key": "operator"}, "operator", 200),
    ],
)
async def test_metrics_of_several_keys_need_their_own(
    start_server: StartServer, settings: dict[str, str], key: str, status: int
) -> None:
    server = await start_server(**settings)
    response = await server.http.get("/metrics", headers=bearer(key))
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "forbidden"
    assert (await server.http.get("/v1/models", headers=bearer("operator"))).status_code == (
        401 if "api_keys" in settings else 200
    )


def test_metrics_key_is_not_empty() -> None:
    with pytest.raises(ValidationError):
        Settings(metrics_key="")
