"""/v1/strategies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.strategy import Strategy
from server.routes import strategies
from tests.server.conftest import FakeServer
from tests.server.fakes import FakePlain


async def test_strategies_have_summary_needs_cost_and_parameters(server: FakeServer) -> None:
    entries = {entry["name"]: entry for entry in (await server.http.get("/v1/strategies")).json()["data"]}
    blind = entries["blind"]
    assert (blind["summary"], blind["needs"]) == ("Contrast with a prompt without images.", ["branches"])
    assert blind["cost"] == {"branches": 1, "questions": {}}
    assert blind["parameters"]["properties"]["alpha"]["default"] == 1.0
    assert entries["focus"]["cost"] == {"branches": 0, "questions": {"probed prompts": 2}}


def clear_caches() -> None:
    strategies.describe_all.cache_clear()


async def test_strategies_are_described_once(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    describe = strategies.describe_strategy

    def record(strategy: type[Strategy], *arguments: Any) -> Any:
        described.append(strategy.name)
        return describe(strategy, *arguments)

    monkeypatch.setattr(strategies, "describe_strategy", record)
    clear_caches()
    paths = ["/v1/strategies", "/v1/models"] * 5
    responses = await asyncio.gather(*(server.http.get(path) for path in paths))
    assert {response.status_code for response in responses} == {200}
    assert len(described) == len(responses[0].json()["data"])


async def test_failing_strategy_does_not_remove_others(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_prepare(self: FakePlain, request: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(FakePlain, "prepare", fail_to_prepare)
    clear_caches()
    entries = {entry["name"]: entry for entry in (await server.http.get("/v1/strategies")).json()["data"]}
    clear_caches()
    assert entries["plain"]["engines"][0]["reason"] == "the strategy fails in a dry run"
    assert entries["blind"]["engines"][0]["runs"]
