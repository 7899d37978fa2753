"""/v1/strategies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import FakeServer
from tests.server.fakes import FakePlain


async def test_strategies_have_summary_needs_cost_and_parameters(server: FakeServer) -> None:
    entries = {entry["name"]: entry for entry in (await server.http.get("/v1/strategies")).json()["data"]}
    blind = entries["blind"]
    assert (blind["summary"], blind["needs"]) == ("Contrast with a prompt without images.", ["branches"])
    assert blind["cost"] == {"branches": 1, "questions": {}}
    assert blind["parameters"]["properties"]["alpha"]["default"] == 1.0
    assert entries["focus"]["cost"] == {"branches": 0, "questions": {"probed prompts": 2}}


async def test_failing_strategy_does_not_remove_others(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_prepare(self: FakePlain, request: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(FakePlain, "prepare", fail_to_prepare)
    from server.serving import strategy_selection

    strategy_selection.try_dry_run.cache_clear()
    entries = {entry["name"]: entry for entry in (await server.http.get("/v1/strategies")).json()["data"]}
    strategy_selection.try_dry_run.cache_clear()
    assert entries["plain"]["engines"][0]["reason"] == "the strategy fails in a dry run"
    assert entries["blind"]["engines"][0]["runs"]
