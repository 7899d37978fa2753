"""Who may ask, and how often."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from server.settings import Settings
from tests.server.conftest import Serve, asked

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
async def test_every_route_is_closed_by_default(serve: Serve, method: str, path: str) -> None:
    served = await serve(api_keys=KEYS)
    response = await served.http.request(method, path, headers={"host": "x/health?"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"] == "test"


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_need_no_key(serve: Serve, path: str) -> None:
    served = await serve(api_keys=KEYS)
    assert (await served.http.get(path)).status_code == 200


@pytest.mark.parametrize("key", ["first-key", "second-key"])
async def test_every_key_fits(serve: Serve, key: str) -> None:
    served = await serve(api_keys=KEYS)
    response = await served.http.post("/v1/chat/completions", json=asked(), headers=bearer(key))
    assert response.status_code == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "Bearer first-ke", "Bearer FIRST-KEY", "Basic first-key", "first-key", "Bearer ü"],
)
async def test_what_is_no_key(serve: Serve, given: str) -> None:
    served = await serve(api_keys=KEYS)
    headers = httpx.Headers([(b"authorization", given.encode())])
    response = await served.http.post("/v1/chat/completions", content=b"x" * 1000, headers=headers)
    assert response.status_code == 401
    assert "first-key" not in response.text


async def test_two_headers_are_no_key(serve: Serve) -> None:
    served = await serve(api_keys=KEYS)
    headers = [("authorization", "Bearer first-key"), ("authorization", "Bearer wrong")]
    assert (await served.http.get("/v1/models", headers=headers)).status_code == 401


async def test_each_key_has_a_rate_of_its_own(serve: Serve) -> None:
    served = await serve(api_keys=KEYS, rate_limit="2/minute")
    answers = [await served.http.get("/v1/models", headers=bearer("first-key")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    error = answers[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
    assert (await served.http.get("/v1/models", headers=bearer("second-key"))).status_code == 200
    assert (await served.http.get("/health")).status_code == 200


def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the web shop\nthird-key\n\n  fourth-key \n")
    settings = Settings.load(["--api-keys-file", str(file)])
    assert settings.known_keys() == ["third-key", "fourth-key"]
    assert "fourth-key" not in repr(settings)


def test_a_door_is_not_left_open_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
