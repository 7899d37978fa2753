"""The rate limit of each API key."""

from __future__ import annotations

import time

import pytest

from server.errors import RateLimited
from server.middleware.auth import ApiKeys
from tests.server.conftest import StartServer
from tests.server.middleware.test_auth import KEYS, bearer


async def test_rate_limit_counts_per_key(start_server: StartServer) -> None:
    server = await start_server(api_keys=KEYS, rate_limit="2/minute")
    responses = [await server.http.get("/version", headers=bearer("first-key")) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    error = responses[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(responses[-1].headers["retry-after"]) <= 61
    assert (await server.http.get("/version", headers=bearer("second-key"))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/tiny:blind", "/v1/strategies"]
)
async def test_rate_limit_leaves_probes_metrics_and_listings_alone(start_server: StartServer, path: str) -> None:
    server = await start_server(api_keys="first-key", rate_limit="2/minute")
    paths = ["/version", path, path, path, "/version", path, "/version"]
    responses = [await server.http.get(each, headers=bearer("first-key")) for each in paths]
    assert [response.status_code for response in responses] == [200] * 6 + [429]


async def test_rate_limit_ignores_changes_of_the_clock(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(api_keys=KEYS, rate_limit="2/minute")
    for _ in range(2):
        assert (await server.http.get("/version", headers=bearer("first-key"))).status_code == 200
    now = time.time()
    for shift in (-172_800, 172_800):
        monkeypatch.setattr(time, "time", lambda shift=shift: now + shift)
        refused = await server.http.get("/version", headers=bearer("first-key"))
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_rate_limit_is_a_moving_window(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, clock = ApiKeys(["key"], "2/minute"), [100.0]
    monkeypatch.setattr("server.middleware.rate_limit.time.monotonic", lambda: clock[0])
    for now in (100.0, 130.0):
        clock[0] = now
        keys.authenticate(b"Bearer key", "/")
    clock[0] = 150.0
    with pytest.raises(RateLimited) as refused:
        keys.authenticate(b"Bearer key", "/")
    assert refused.value.retry_after == 10
    clock[0] = 160.0
    keys.authenticate(b"Bearer key", "/")
    with pytest.raises(RateLimited):
        keys.authenticate(b"Bearer key", "/")
