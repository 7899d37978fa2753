"""/health and /ready during start-up and after a failure."""

from __future__ import annotations

import pytest
from structlog.typing import EventDict

from decoding.errors import StrategyFailed, Unsupported
from tests.server.conftest import FakeServer, StartServer
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine


async def test_health_is_ok_while_model_is_loading(start_server: StartServer) -> None:
    engine = FakeEngine()
    engine.can_start.clear()
    server = await start_server(engine, wait_until_started=False)
    assert (await server.http.get("/health")).status_code == 200
    for method, path in [("GET", "/ready"), ("GET", "/v1/models"), ("GET", "/v1/strategies")]:
        response = await server.http.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["retry-after"]
    assert (await server.chat()).status_code == 503
    engine.can_start.set()
    await server.wait_until_started()
    assert (await server.http.get("/ready")).json() == {"status": "ready"}
    assert (await server.chat()).status_code == 200


async def test_dead_engine_makes_server_unavailable(server: FakeServer) -> None:
    server.engine.is_alive = False
    for response in [await server.http.get("/health"), await server.http.get("/ready"), await server.chat()]:
        assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")


async def test_engine_that_cannot_run_default_strategy_does_not_start(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"branches"}), strategy="blind")
    assert "branches" in str(server.app.state.service.startup_error)
    assert (await server.http.get("/health")).status_code == 503


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(Unsupported("There is no model."), False), (StrategyFailed("vhr", "failed"), True), (ValueError("a"), True)],
)
async def test_explained_failure_of_the_start_is_logged_without_a_traceback(
    start_server: StartServer, log_entries: list[EventDict], error: Exception, has_traceback: bool
) -> None:
    class Unstartable(FakeEngine):
        async def start(self) -> None:
            raise error

    server = await start_server(Unstartable())
    assert server.app.state.service.startup_error is error
    (entry,) = [entry for entry in log_entries if entry["event"] == "engine_start_failed"]
    assert entry["exc_info"] is (error if has_traceback else None)
